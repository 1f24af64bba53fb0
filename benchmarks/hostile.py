"""Give an index to somebody hostile, or to a machine in trouble, and see what becomes of it.

    python benchmarks/hostile.py

Each attempt changes one thing in a copy of an index, and then lets processes of their own open and
search it, verify it, and remove an image from it. Every one of them must answer as before, or end
with one error that names what is wrong: within seconds, within memory, without a word of damage
where only the machine was in trouble, and without a change to any file outside the copy. A process
that does anything else is counted, and named in `others`. The encoder is a tiny one, untrained.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from crash import SIDE, tiny_model
from PIL import Image
from provenance import provenance, without_paths, write_result
from tqdm import tqdm

from indexing import Corpus, ImageIndex, read_manifest, remove_images, verify_index, write
from indexing.search import faiss_file
from matvit import SEAL, files, sealed, sha256_of, writing

PHOTOS, SHARD_SIZE, SECONDS, MEGABYTES = 40, 8, 20, 300
OUTCOMES = ("answered", "refused", "other_answer", "hung", "memory", "called_damage", "elsewhere")
TROUBLE = (errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOMEM)

Change = Callable[[Path], object]
"""What is done to a copy; what it returns, if that can be called, is called in each process."""


def main() -> None:
    """Try everything, and write what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=40, help="flipped in each file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    write.SHARD_SIZE = SHARD_SIZE
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.bits)
    command = "python benchmarks/hostile.py " + without_paths(sys.argv[1:])
    write_result("hostile", {**provenance(command.strip()), "seconds": SECONDS, "rows": rows})


def measure(work: Path, bits: int) -> list[dict[str, Any]]:
    """Count what becomes of each kind of attempt."""
    index, victim = prepare(work), work / "victim"
    victim.write_bytes(b"precious")
    right, rows = answer(index), []
    for name, changes in attempts(index, victim, bits).items():
        row = {"tried": name, "times": 0, **dict.fromkeys(OUTCOMES, 0), "others": []}
        for what, change in tqdm(list(changes), desc=name):
            before = {path: path.read_bytes() for path in (victim, *_files(index))}
            outcomes = one_attempt(index, work / "copy", change, right)
            if {path: path.read_bytes() for path in before} != before:
                outcomes.append("elsewhere")
            row["times"] += 1
            for outcome in outcomes:
                row[outcome] += 1
            if set(outcomes) - {"answered", "refused"}:
                row["others"].append(f"{what}: {', '.join(outcomes)}")
        rows.append(row)
    return rows


def prepare(work: Path) -> Path:
    """Build an index that has files of every kind."""
    photos = work / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:03}.png")
    (photos / "bad.png").write_text("no image")
    index = ImageIndex.build(tiny_model(), Corpus.open(photos), work / "index")
    index.remove([3])
    return work / "index"


def attempts(index: Path, victim: Path, bits: int) -> dict[str, Iterator[tuple[str, Change]]]:
    """Each kind of attempt, as changes to a copy of the index."""
    names = [*(file.name for file in read_manifest(index).files), "manifest.json"]
    written = [*names, "LOCK", "manifest.json.prev"]
    return {
        "a bit flipped": flips(index, names, bits),
        "a file cut off": cuts(index, names),
        "a file gone": ((name, _replaced(name, Path.exists)) for name in names),
        "a link to a file elsewhere": (
            (name, _replaced(name, lambda path: path.symlink_to(victim))) for name in written
        ),
        "a link to the same file elsewhere": (
            (name, _replaced(name, lambda path, name=name: path.symlink_to(index / name)))
            for name in written if (index / name).exists()
        ),
        "a folder that is a link": (
            (name, _folder_linked(name, index)) for name in ("img_emb", "metadata", "index")
        ),
        "a FIFO": ((name, _replaced(name, os.mkfifo)) for name in written),
        "a device": (
            (name, _replaced(name, lambda path: path.symlink_to("/dev/zero"))) for name in written
        ),
        "a size that is forged": forgeries(),
        "an error of the disk or the machine": (
            (f"{os.strerror(code)}: {name}", _failing(code, name))
            for name in names for code in TROUBLE
        ),
    }  # fmt: skip


def flips(index: Path, names: list[str], bits: int) -> Iterator[tuple[str, Change]]:
    """Flip bits of each file, one at a time, drawn evenly."""
    chance = np.random.default_rng(0)
    for name in names:
        size = (index / name).stat().st_size
        for offset, bit in zip(
            chance.integers(0, size, bits), chance.integers(0, 8, bits), strict=True
        ):

            def flip(copy: Path, name: str = name, offset: int = offset, bit: int = bit) -> None:
                content = bytearray((copy / name).read_bytes())
                content[offset] ^= 1 << bit
                (copy / name).write_bytes(content)

            yield f"bit {bit} of byte {offset} of {name}", flip


def cuts(index: Path, names: list[str]) -> Iterator[tuple[str, Change]]:
    """Cut each file off at five places."""
    for name in names:
        size = (index / name).stat().st_size
        for length in (0, size // 4, size // 2, size - 9, size - 2):
            yield (
                f"{name} of {length} bytes",
                lambda copy, n=name, to=length: os.truncate(copy / n, to),
            )


def forgeries() -> Iterator[tuple[str, Change]]:
    """Claim sizes that are not there, with hashes that are right."""

    def large_manifest(copy: Path) -> None:
        os.truncate(copy / "manifest.json", 240 << 20)

    def full_manifest(copy: Path) -> None:
        (copy / "manifest.json").write_bytes(b"[" + b"[]," * 5_000_000 + b"[]]")

    def long_texts(copy: Path) -> None:
        shard = read_manifest(copy).shards[0]
        table = pq.read_table(copy / shard.metadata.name)
        text = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(table), np.int32)), pa.array(["x" * (1 << 26)])
        )
        table = table.set_column(1, "path", text)
        _forge(
            copy, shard.metadata.name, lambda path: pq.write_table(table, path, store_schema=False)
        )

    def header(copy: Path, kind: str, said: bytes, forged: bytes) -> None:
        name = next(file.name for file in read_manifest(copy).files if kind in file.name)
        content = (copy / name).read_bytes().replace(said, forged, 1)
        _forge(copy, name, lambda path: path.write_bytes(content))

    yield "a manifest of 240 MB", large_manifest
    yield "a manifest of five million lists", full_manifest
    yield "a name of 64 MB for every image", long_texts
    yield (
        "embeddings",
        lambda copy: header(copy, "img_emb", b"'shape': (8, 16)", b"'shape': (8, 1<<9)"),
    )
    yield (
        "tombstones",
        lambda copy: header(copy, "tombstones", b"'shape': (1,)", b"'shape': (1<<40,)"),
    )
    yield "dimension", lambda copy: header(copy, "knn", (16).to_bytes(4, "little"), b"\0\0\1\0")


def _forge(copy: Path, name: str, write_file: Callable[[Path], object]) -> None:
    """Write a file anew and make the manifest say so."""
    write_file(copy / name)
    values = json.loads((copy / "manifest.json").read_bytes())
    del values[SEAL]
    parts = [
        part for shard in values["shards"] for part in shard.values() if isinstance(part, dict)
    ]
    for part in (*parts, values["tombstones"], values["index"]["file"]):
        if part["name"] == name:
            part |= {"bytes": (copy / name).stat().st_size, "sha256": sha256_of(copy / name)}
    (copy / "manifest.json").write_bytes(sealed(values))


def _replaced(name: str, put: Callable[[Path], object]) -> Change:
    """Put something else in the place of a file."""

    def change(copy: Path) -> None:
        (copy / name).unlink(missing_ok=True)
        put(copy / name)

    return change


def _folder_linked(name: str, index: Path) -> Change:
    def change(copy: Path) -> None:
        shutil.rmtree(copy / name)
        (copy / name).symlink_to(index / name)

    return change


def _failing(code: int, name: str) -> Change:
    """Let every attempt to open a file fail."""

    def change(copy: Path) -> Callable[[], None]:
        place, opened, mapped = copy / name, files.open_regular, pa.memory_map

        def fail(path: Any, call: Callable[..., Any]) -> Any:  # noqa: ANN401
            if os.fsdecode(path) == str(place):
                raise OSError(code, os.strerror(code), str(place))
            return call(path)

        def inside() -> None:
            for module in (files, writing, faiss_file):
                module.open_regular = lambda path: fail(path, opened)
            pa.memory_map = lambda path: fail(path, mapped)

        return inside

    return change


def one_attempt(index: Path, copy: Path, change: Change, right: bytes) -> list[str]:
    """Change a copy of an index, and let three processes use it: what became of each of them."""
    outcomes = []
    for use in (_search, _verify, _remove):
        shutil.copytree(index, copy)
        inside = change(copy)
        trouble = callable(inside)
        said = in_a_process(lambda: use(copy), inside if trouble else lambda: None)  # noqa: B023
        if said.startswith("done") and said != "done" and said.encode() != b"done" + right:
            outcomes.append("other_answer")
        elif trouble and "damaged" in said:
            outcomes.append("called_damage")
        else:
            outcomes.append("answered" if said.startswith("done") else said.split(":")[0])
        shutil.rmtree(copy)
    return outcomes


def _search(copy: Path) -> str:
    return answer(copy).decode()


def _verify(copy: Path) -> str:
    report = verify_index(copy)
    if not report.ok:
        raise ValueError("damaged" if report.damaged else "unreadable")
    return ""


def _remove(copy: Path) -> str:
    remove_images(copy, [5], [])
    return ""


def answer(index: Path) -> bytes:
    """All that an index answers, as a hash."""
    opened = ImageIndex.open(index)
    found = opened.search(opened.embeddings[:], 10)
    text = repr([part.tolist() for part in found]) + repr(opened.paths) + repr(opened.failures)
    return hashlib.sha256(text.encode()).hexdigest().encode()


def in_a_process(use: Callable[[], str], inside: Callable[[], object]) -> str:
    """Run something in a child process: "done" and what it said, "refused: why", or worse."""
    reading, writes = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)  # kills it
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            inside()
            said = "done" + use()
        except (OSError, ValueError) as error:
            said = f"refused: {error}" if len(str(error).splitlines()) == 1 else "other_answer"
        except MemoryError:
            said = "memory"
        except BaseException as error:  # noqa: BLE001 -- it is counted
            said = f"other_answer: {error!r}"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEGABYTES << 10:
            said = "memory"
        os.write(writes, said.encode(errors="replace")[:4_000])
        os._exit(0)
    os.close(writes)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said or "hung"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


if __name__ == "__main__":
    main()
