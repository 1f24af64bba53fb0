from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from app.demo import DIGIT_SIDE, write_digits


def test_every_digit_becomes_a_labelled_file(tmp_path):
    write_digits(tmp_path)
    digits = load_digits()
    files = sorted(tmp_path.rglob("*.png"), key=lambda path: path.name)
    assert len(files) == 1797
    assert [int(path.parent.name) for path in files] == digits.target.tolist()
    with Image.open(files[5]) as image:
        assert image.size == (DIGIT_SIDE, DIGIT_SIDE)
        shrunk = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
    # Blown up and shrunk again, the picture is close to the original's 17 levels of gray.
    assert np.abs(shrunk / 255 * 16 - digits.images[5]).mean() < 1.5


def test_files_that_are_there_are_left_alone(tmp_path):
    first = write_digits(tmp_path) / "0" / "0000.png"
    before = first.stat().st_mtime_ns
    (tmp_path / "1" / "0001.png").unlink()
    write_digits(tmp_path)
    assert first.stat().st_mtime_ns == before
    assert (tmp_path / "1" / "0001.png").exists()
