"""A build shared by several workers, each of which needs nothing but the images and a folder.

A worker embeds its share into an unfinished index of its own: it is as safe from crashes as a
build, and whoever replaces a worker goes on where that was stopped. When all are there, they are
staged one after the other in one index, and merged as a build is.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from indexing.checks import check_whole
from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from indexing.merge import merge_build
from indexing.search.gpu import gpu_count
from indexing.search.kinds import resolve
from indexing.search.request import KindRequest
from indexing.stage import stage_shard
from indexing.store.embeddings import Embeddings
from indexing.store.folder import new_index, read_manifest, remove_index
from indexing.store.manifest import Manifest, Shard, Share
from indexing.store.rows import METADATA, metadata_table, read_failures, read_tables
from indexing.write import intact, stage_images
from matvit import Encoder, Precision, progress_of

_NAME = re.compile(r"shard-(?P<number>\d{5,})-of-(?P<of>\d{5,})")
_AGAIN = "make it again: remove it, and run matvit index shard"

Made = tuple[Path, Manifest]


def shard_folder(folder: Path, number: int, of: int) -> Path:
    """Where a share is stored."""
    return folder / f"shard-{number:05}-of-{of:05}"


def embed_shard(
    encoder: Encoder,
    corpus: Corpus,
    folder: Path,
    number: int,
    of: int,
    *,
    decoders: Decoders = Decoders(),
    precision: Precision = "auto",
    progress: bool = False,
) -> Manifest:
    """Embed one of several equal shares of a corpus, or finish doing so.

    Args:
        encoder: See `ImageIndex.build`, as all that is not named here.
        corpus: All images; each worker has to see the same.
        folder: Of all shares.
        number: Of the share, from 1.
        of: How many there are.
        decoders: Who decodes, and how many images are embedded at a time.
        precision: In which numbers the encoder computes; see `matvit.embed`.
        progress: Show a progress bar on stderr.

    Returns:
        What was stored.

    Raises:
        BlockingIOError: If another worker is at the same share.
        IndexMismatchError: If it was begun by another encoder or preprocessing.
        ValueError: If it was begun with another list of images or other options, there is no such
            share, or the encoder is not whole.
    """
    check_whole(encoder)
    if not 1 <= number <= of:
        raise ValueError(f"a shard is one of 1/{of} to {of}/{of}, got {number}/{of}")
    runtime = encoder.runtime
    share = Share(
        number=number,
        of=of,
        batch_size=decoders.batch_size,
        numbers=encoder.number_format(precision),
        devices=(f"{runtime.library} {runtime.version} on {runtime.place}",),
    )
    path = shard_folder(folder, number, of)
    with new_index(path) as begun:
        return stage_images(
            encoder, corpus, path, begun,
            share=share, decoders=decoders, precision=precision, progress=progress,
        )  # fmt: skip


def build_from_shards(
    folder: Path, path: Path, *, request: KindRequest, progress: bool = False
) -> dict[str, int]:
    """Make an index of all shares of a corpus, or finish doing so.

    It is the one that `build_index` makes of the same images, byte by byte, if every share was
    embedded on the same kind of device.

    Args:
        folder: With what `embed_shard` made.
        path: Folder of the index.
        request: What kind of search structure is wanted.
        progress: Show a progress bar on stderr.

    Returns:
        How many shares were embedded on each device.

    Raises:
        FileNotFoundError: If a share is missing.
        FileExistsError: If `path` holds anything but the same job, unfinished.
        ValueError: If a share is unfinished or damaged, or they are of different images, encoders
            or options, or no image could be read.
    """
    made = read_shares(folder)
    first = made[0][1]
    assert first.plan is not None
    resolve(request, first.corpus.images, first.encoder.dim)  # or much is copied for nothing
    plan = replace(first.plan, share=None)
    empty = replace(first, staged=(), next_id=0, next_shard=0, plan=plan)
    with new_index(path) as begun:
        manifest = empty
        if begun is None:
            remove_index(path)
        else:
            manifest = _same_job(path, begun, empty)
        todo = [(place, shard) for place, part in made for shard in part.staged]
        with progress_of("joining", len(todo), unit="files", shown=progress) as bar:
            for place, shard in todo[len(manifest.staged) :]:
                manifest = _take(path, manifest, place, shard)
                bar.update()
        device = "auto" if gpu_count() else "cpu"
        merge_build(path, manifest, request, device=device, progress=progress)
    devices = [device for _, part in made for device in _share_of(part).devices]
    return {device: devices.count(device) for device in dict.fromkeys(devices)}


def read_shares(folder: Path) -> list[Made]:
    """Return folder and state of every share, in order.

    Raises:
        FileNotFoundError: If there are none, or one is missing.
        ValueError: If one is unfinished, or they do not belong together.
    """
    found = [path for path in sorted(folder.glob("shard-*")) if _NAME.fullmatch(path.name)]
    if not found:
        raise FileNotFoundError(
            f"no shards in {folder}; make them: matvit index shard IMAGES --out {folder} --shard "
            "1/4, and so on"
        )
    counts = sorted({int(_NAME.fullmatch(path.name)["of"]) for path in found})  # type: ignore[index]
    if len(counts) > 1:
        raise ValueError(
            f"{folder} holds shards of {' and of '.join(map(str, counts))}; leave those of one "
            "division there"
        )
    of = counts[0]
    made: list[Made] = []
    for number in range(1, of + 1):
        path = shard_folder(folder, number, of)
        way = f"run matvit index shard IMAGES --out {folder} --shard {number}/{of}"
        if path not in found or not path.is_dir():
            raise FileNotFoundError(f"shard {number}/{of} is missing in {folder}; {way}")
        made.append((path, _read_share(path, way)))
        _refuse_another(made[0], made[-1])
    return made


def _read_share(path: Path, way: str) -> Manifest:
    """Read the state of a finished share.

    Raises:
        FileNotFoundError: If nothing of it is stored yet.
        ValueError: If it is unfinished, or none.
    """
    try:
        manifest = read_manifest(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"nothing is stored in {path} yet; {way}") from error
    plan = manifest.plan
    if (
        plan is None
        or plan.share is None
        or path != shard_folder(path.parent, plan.share.number, plan.share.of)
    ):
        raise ValueError(f"{path} is another thing than its name says; {_AGAIN}")
    run = len(plan.run(manifest.corpus.images))
    done = min(len(manifest.staged) * plan.shard_size, run)
    if done < run:
        raise ValueError(f"{path} is unfinished: {done:,} of {run:,} images are stored; {way}")
    return manifest


def _refuse_another(first: Made, other: Made) -> None:
    """Refuse a share that does not belong to the first one.

    Raises:
        ValueError: If it is of other images, or was embedded otherwise; the message says how.
    """
    for what, mine, its in zip(
        ("encoder", "preprocessing", "list of images", "options"),
        _identity(first[1]),
        _identity(other[1]),
        strict=True,
    ):
        if mine != its:
            raise ValueError(
                f"{other[0]} has another {what} than {first[0]}: {_short(its)}, not {_short(mine)};"
                f" {_AGAIN} with the same"
            )


def _identity(manifest: Manifest) -> tuple[object, ...]:
    """What all shares have in common: encoder, preprocessing, list of images, options."""
    assert manifest.plan is not None
    plan, share = manifest.plan, _share_of(manifest)
    corpus = manifest.corpus
    return (
        (manifest.encoder.name, manifest.encoder.fingerprint),
        (manifest.preprocess.fingerprint, manifest.preprocess.colours),
        (corpus.root, f"{corpus.images:,} images", plan.list_sha256, corpus.selection),
        (share.of, f"batches of {share.batch_size}", share.numbers, plan.shard_size),
    )


def _short(identity: object) -> str:
    assert isinstance(identity, tuple)
    return ", ".join(str(each)[:60] for each in identity[:3])


def _share_of(manifest: Manifest) -> Share:
    assert manifest.plan is not None
    assert manifest.plan.share is not None
    return manifest.plan.share


def _same_job(path: Path, begun: Manifest, empty: Manifest) -> Manifest:
    """Return what is whole of an index that was begun with the same shares.

    Raises:
        ValueError: If it was begun with anything else.
    """
    if replace(begun, staged=(), next_id=0, next_shard=0) != empty:
        raise ValueError(
            f"{path} was begun with other images, another encoder or other options than these "
            "shards; choose another folder, or remove it and start again"
        )
    return intact(path, begun)


def _take(path: Path, manifest: Manifest, place: Path, shard: Shard) -> Manifest:
    """Stage what a share has stored; ids go on where those of the share before ended."""
    try:
        vectors = Embeddings(place, [shard.embeddings], manifest.encoder.dim).raw(slice(None))
        table = read_tables(place, [shard.metadata], METADATA)
        failures = read_failures(place, [shard.failures] if shard.failures else [])
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{error}; {place} is not whole: {_AGAIN}") from error
    ids = np.arange(manifest.next_id, manifest.next_id + len(table))
    table = metadata_table(table.drop_columns(["id"]).to_batches(), ids.tolist())
    manifest = replace(manifest, next_id=manifest.next_id + len(table))
    return stage_shard(path, manifest, vectors, table, failures)
