"""Small files that would cost gigabytes or minutes are one failure each, in little of either."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex
from matvit import Preprocess, bounds, preprocess, upright

SMALL = Preprocess(img_size=8)
SIDE = 13_300  # below the limit of pixels


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *, depth=8, colour=2, chunks=(), data=b""):
    """A PNG that says what it is without having to be it."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def scans(size, copies, **options):
    """A progressive JPEG that draws its last scan again and again."""
    data = encoded(Image.new("L", size), "JPEG", progressive=True, **options)
    end = data.rindex(b"\xff\xd9")
    last = data.rindex(b"\xff\xda", 0, end)
    return data[:end] + data[last:end] * copies + data[end:]


def large_webp():
    """A WebP of a few bytes: lossless, all of one colour."""
    data = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)
    at = data.index(b"VP8L") + 9
    size = (SIDE - 1) | (SIDE - 1) << 14
    bits = int.from_bytes(data[at : at + 4], "little") >> 28 << 28 | size
    return data[:at] + bits.to_bytes(4, "little") + data[at + 4 :]


def icon(inside):
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


BOMBS = {
    "rgba.png": png(SIDE, SIDE, colour=6),
    "rgb.webp": large_webp(),
    "icon.ico": icon(png(SIDE, SIDE, colour=6)),
    "scans.jpg": scans((64, 64), 200),
    "sketch.jpg": scans((64, 64), 200, comment=b"\xff\xd9"),
    "segments.jpg": b"\xff\xd8" + b"\xff\xe5\0\2" * (1 << 20),
    "filling.jpg": b"\xff\xd8" + b"\xff" * (1 << 22) + b"\xd9" * 9,
    "chunks.png": png(8, 8, chunks=[(b"teXt", b"")] * (1 << 18)),
    "text.png": png(8, 8, chunks=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))]),
    "profile.png": png(8, 8, chunks=[(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26)))]),
    "plain.ppm": b"P3 2000 2000 255\n" + b"1 " * (1 << 23) + b" ",
}
FLOATS = {256: 9000, 257: 9000, 258: 32, 259: 1, 262: 1, 273: 8, 278: 9000, 339: 3}
TAGS = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in FLOATS.items())
BOMBS["float.tif"] = b"II*\0\x08\0\0\0" + struct.pack("<H", len(FLOATS)) + TAGS + bytes(4)


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_at_once(name):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="^not a readable image: "):
        SMALL.pixels(BOMBS[name])
    assert time.perf_counter() - start < 5


def test_bombs_say_what_they_would_cost():
    for name, reason in {
        "rgba.png": "it takes 1.4 GB to decode, more than the limit of 1.0 GB",
        "icon.ico": "the icon has more than 4,194,304 pixels",
        "rgb.webp": "it takes .* GB to decode",
        "float.tif": "it takes 1.9 GB to decode",
        "scans.jpg": "the JPEG has more than 100 scans",
        "sketch.jpg": "the JPEG has more than 100 scans",
        "segments.jpg": "the JPEG has no image for too long",
        "filling.jpg": "the JPEG has no image for too long",
        "chunks.png": "the PNG has more than 262,144 chunks",
        "plain.ppm": "in a form that takes minutes to decode",
    }.items():
        with pytest.raises(ValueError, match=reason):
            SMALL.pixels(BOMBS[name])


def test_bombs_are_failures_of_a_build_and_stop_nothing(tmp_path):
    photo(tmp_path / "photos/a.png", 0)
    for name, data in BOMBS.items():
        (tmp_path / "photos" / name).write_bytes(data)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "index")
    assert index.paths == ["a.png"]
    assert sorted(failure.path for failure in index.failures) == sorted(BOMBS)


def test_ordinary_images_with_odd_parts_are_read():
    photo = Image.effect_noise((64, 64), 80)
    jpeg = encoded(photo, "JPEG", progressive=True)
    thumbnails = jpeg[:2] + b"".join(
        b"\xff\xe5\xff\xff" + (b"\xff\xda" * (1 << 15))[: 0xFFFF - 2] for _ in range(3)
    )
    for data in (thumbnails + jpeg[2:], jpeg + b"\xff\xda\0\2" * 200, scans((64, 64), 50)):
        assert SMALL.pixels(data).shape == (8, 8, 3)
    frames = [Image.effect_noise((8, 8), number) for number in range(1, 200)]
    for kind in ("TIFF", "GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert SMALL.decode(data)[1:] == (8, 8)
    assert SMALL.pixels(encoded(photo.convert("RGBA"), "ICO")).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
def test_strips_of_a_large_image_make_the_same_pixels(monkeypatch, mode):
    levels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    image = Image.fromarray(levels)
    if mode == "I;16":
        image = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    elif mode == "CMYK":
        image = Image.frombytes("CMYK", (30, 40), levels.tobytes())
    else:
        image = image.convert(mode)
    whole = SMALL.pixels(image)
    monkeypatch.setattr(upright, "_STRIP_PIXELS", 77)
    assert np.array_equal(SMALL.pixels(image), whole)


def test_threads_share_the_memory_and_wait_for_each_other(monkeypatch):
    data = encoded(Image.effect_noise((100, 100), 80).convert("RGBA"), "PNG")
    needed = len(data) + 100 * 100 * 8
    monkeypatch.setattr(bounds, "MAX_MEMORY", 2 * needed + 5)
    inside, most, lock = [0], [0], threading.Lock()
    whole = preprocess.upright_rgb

    def counted(image):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        try:
            return whole(image)
        finally:
            with lock:
                inside[0] -= 1

    monkeypatch.setattr(preprocess, "upright_rgb", counted)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(SMALL.pixels, [data] * 24))) == 24
    assert most[0] == 2
    assert bounds.MEMORY._held == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_process_does_not_wait_for_threads_that_it_does_not_have():
    with bounds.MEMORY.hold(bounds.MAX_MEMORY):
        child = os.fork()
        if child == 0:
            with bounds.MEMORY.hold(bounds.MAX_MEMORY):
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork") or bounds._trim() is None, reason="glibc's matter")
def test_what_threads_decoded_is_given_back():
    data = encoded(Image.new("RGB", (4_200, 4_200)), "PNG")
    page = os.sysconf("SC_PAGE_SIZE")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    SMALL.decode(data)
    before, barrier = resident(), threading.Barrier(4)

    def decode(_):
        barrier.wait(20)  # each in a thread of its own
        SMALL.decode(data)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, range(4)))
        grown = resident() - before
    assert grown < 2 * 4_200**2 * 4  # of four images that were in memory
