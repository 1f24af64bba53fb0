"""Pillow's warnings: they neither decide what can be read nor reach anybody, in any thread."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from matvit.preprocess import Preprocess, QuietPillow

PREPROCESS = Preprocess(img_size=8)


def photo_with_damaged_exif():
    """A photo that Pillow reads with a warning about its metadata."""
    exif = Image.Exif()
    exif[0x010F] = "a camera with a long name"
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stream, "JPEG", exif=exif)
    data = bytearray(stream.getvalue())
    at = data.index(b"Exif\0\0") + 6
    data[at + 8 : at + 10] = b"\xff\xff"  # as many entries as there are not
    return bytes(data)


def test_warning_does_not_make_a_photo_unreadable():
    data = photo_with_damaged_exif()
    with (
        pytest.warns(UserWarning, match="Truncated|Corrupt"),
        Image.open(io.BytesIO(data)) as image,
    ):
        image.getexif()
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:  # here every warning is an error
        decoded = list(pool.map(PREPROCESS.pixels, [data] * 40))
    assert all(np.array_equal(pixels, decoded[0]) for pixels in decoded)
    assert list(warnings.filters) == before


def test_filters_are_put_back_by_the_last_one_out():
    quiet, before = QuietPillow(), list(warnings.filters)
    quiet.__enter__()
    quiet.__enter__()
    quiet.__exit__(None, None, None)
    assert list(warnings.filters) != before
    quiet.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_warnings_of_others_are_still_heard():
    with QuietPillow(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
