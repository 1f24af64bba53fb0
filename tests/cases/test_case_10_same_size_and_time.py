"""A file replaced by another of the same size and time is found by whoever asks for it.

Mutants these must catch: files read, but not compared; a replaced file that keeps its old id; an
original that is gone taken for one that is whole.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from toy import SIDE, ToyEncoder, expected_embedding

from indexing import Corpus, ImageIndex

TOY = ToyEncoder()


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (SIDE, SIDE), name).save(tmp_path / f"photos/{name}.bmp")
    return tmp_path / "photos"


@pytest.fixture
def index(photos, tmp_path):
    """Of three images, one of which is another now."""
    index = ImageIndex.build(TOY, Corpus.open(photos), tmp_path / "index")
    replace(photos / "red.bmp", "yellow")
    return index


def replace(path, colour):
    before = path.stat()
    Image.new("RGB", (SIDE, SIDE), colour).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_replaced_file_is_found_by_reading_all(index, photos):
    assert index.add(TOY, Corpus.open(photos)).report.unchanged == 3
    after = index.add(TOY, Corpus.open(photos), rehash=True)
    assert (after.report.changed, after.report.unchanged) == (1, 2)
    row = after.paths.index("red.bmp")
    assert after.ids[row] == 3
    np.testing.assert_allclose(
        after.embeddings[row], expected_embedding(photos / "red.bmp"), atol=1e-3
    )
    assert after.add(TOY, Corpus.open(photos), rehash=True).report.unchanged == 3


def test_verifying_the_originals_names_what_is_no_longer_what_was_indexed(index, photos):
    assert index.verify().changed == ()
    (photos / "green.bmp").unlink()
    report = index.verify(originals=True)
    assert (report.ok, report.compared) == (True, 3)
    assert {image.file: image.problem for image in report.changed} == {
        "red.bmp": "it is not the image that was indexed",
        "green.bmp": "it is gone",
    }


def test_commands(matvit, encoder, photos, tmp_path):
    index = tmp_path / "photos.index"
    matvit("index", "build", photos, "--out", index, "--encoder", encoder)
    replace(photos / "red.bmp", "yellow")
    code, out, err = matvit("index", "verify", index, "--originals")
    assert code == 1
    assert "changed  red.bmp: it is not the image that was indexed" in out
    assert "3 images read, 1 not as indexed." in out
    assert "index add --rehash" in err
    code, out, _ = matvit("index", "add", index, "--encoder", encoder, "--rehash")
    assert code == 0
    assert "1 changed" in out
    assert matvit("index", "verify", index, "--originals")[0] == 0
