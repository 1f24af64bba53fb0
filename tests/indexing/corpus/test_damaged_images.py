"""Damaged images of every kind among good ones: none shifts a row, and each has its reason.

The oracle for a row is the same file decoded alone; for a failure, that decoding it alone fails,
and damage that leaves nothing to decode must be among the failures.
"""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from matvit.preprocess import Preprocess

PREPROCESS = Preprocess(img_size=8)
FORMATS = {
    "jpg": {"format": "JPEG"},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "cmyk.jpg": {"format": "JPEG", "mode": "CMYK"},
    "png": {"format": "PNG"},
    "gray16.png": {"format": "PNG", "mode": "I;16"},
    "gif": {"format": "GIF", "save_all": True},
    "webp": {"format": "WEBP"},
    "lossless.webp": {"format": "WEBP", "lossless": True},
    "tiff": {"format": "TIFF"},
    "lzw.tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "bmp": {"format": "BMP"},
}
CUTS = (0.02, 0.1, 0.25, 0.5, 0.7, 0.9, 0.98)
FLIPS = 16
EVERY = 5  # a good image comes after so many damaged ones


def image_file(seed, *, format="PNG", mode="RGB", **options):  # noqa: A002 -- Pillow's word
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).convert(mode)
    if "save_all" in options:
        options["append_images"] = [image.rotate(90), image.rotate(180)]
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def flipped(data, rng):
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), 4):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def damaged_files():
    """Damaged versions of an image in each format: name, bytes, and whether nothing is left."""
    for number, (suffix, options) in enumerate(FORMATS.items()):
        whole = image_file(number, **options)
        rng = np.random.default_rng(number)
        for share in CUTS:
            # Half of the animation still has its first frame, which is what is shown.
            hopeless = share <= (0.25 if suffix == "gif" else 0.5)
            yield f"cut{share}.{suffix}", whole[: int(share * len(whole))], hopeless
        for flip in range(FLIPS):
            yield f"flip{flip}.{suffix}", flipped(whole, rng), False
        for head in (1, 2, 8):
            yield f"head{head}.{suffix}", b"\x00" * head + whole[head:], head == 8
        yield f"noise.{suffix}", rng.bytes(len(whole)), True
        yield f"text.{suffix}", b"<html>not found</html>", True
        yield f"empty.{suffix}", b"", True
        yield f"hole.{suffix}", whole[:40] + bytes(len(whole) - 40), suffix.endswith("jpg")


@pytest.fixture(scope="module")
def files():
    """Name, bytes and whether it must fail, sorted by name; good ones in between."""
    made = list(damaged_files())
    good = [
        (image_file(1000 + number, **options), suffix)
        for number in range(len(made) // EVERY // len(FORMATS) + 1)
        for suffix, options in FORMATS.items()
    ]
    mixed = []
    for number, (name, data, hopeless) in enumerate(made):
        mixed.append((f"{number:04}.{name}", data, hopeless))
        if number % EVERY == 0:
            data, suffix = good[number // EVERY]
            mixed.append((f"{number:04}z.good.{suffix}", data, False))
    return mixed


@pytest.fixture(scope="module")
def alone(files):
    """What each file gives when it is decoded by itself: pixels, or the reason why not."""
    outcomes = {}
    for name, data, _ in files:
        try:
            outcomes[name] = PREPROCESS.pixels(data)
        except ValueError as error:
            outcomes[name] = str(error)
    return outcomes


def as_folder(files, path):
    path.mkdir()
    for name, data, _ in files:
        (path / name).write_bytes(data)
    return path


def as_parquet(files, path):
    images = [{"bytes": data, "path": name} for name, data, _ in files]
    path.mkdir()
    pq.write_table(pa.table({"image": images}), path / "all.parquet", row_group_size=50)
    return path


def as_tar(files, path):
    path.mkdir()
    with tarfile.open(path / "all.tar", "w") as archive:
        for name, data, _ in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (as_folder, {}),
        (as_folder, {"workers": 2, "processes": True}),
        (as_parquet, {}),
        (as_tar, {}),
    ],
)
def test_damaged_images_shift_no_row_and_are_all_reported(files, alone, tmp_path, write, options):
    corpus = Corpus.open(write(files, tmp_path / "images"))
    batches = list(corpus.decode(PREPROCESS, Decoders(batch_size=37, **options)))
    where = "all.tar/" if corpus.kind == "tar" else ""
    assert corpus.names.to_pylist() == [where + name for name, _, _ in files]
    records = [record for batch in batches for record in batch.records]
    failures = [failure for batch in batches for failure in batch.failures]
    assert len(records) + len(failures) == len(files)
    for row, record in zip(np.concatenate([b.pixels for b in batches]), records, strict=True):
        name = files[record.position][0]
        assert record.path == where + name
        np.testing.assert_array_equal(row, alone[name])
    for failure in failures:
        name = files[failure.position][0]
        assert failure.path == where + name
        assert failure.message == alone[name]
        assert failure.message.startswith("not a readable image: ")


def test_there_are_enough_damaged_images_and_damage_is_told_from_its_absence(files, alone):
    damaged = [name for name, _, _ in files if ".good." not in name]
    assert len(damaged) >= 300
    failed = {name for name, outcome in alone.items() if isinstance(outcome, str)}
    assert {name for name, _, hopeless in files if hopeless} <= failed
    assert failed <= set(damaged)
