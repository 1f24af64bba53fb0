"""Images that are removed for good, though their files are still there.

Mutants these must catch: a forgotten image that comes back; a manifest that older programs cannot
read although nothing was forgotten; a removal that does not say what the next addition will do.
"""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from toy import DIM, ToyEncoder, photo

from indexing import Corpus, ImageIndex
from indexing.store.folder import read_manifest


def test_removed_image_comes_back_and_the_report_says_so(index, photos, add_all):
    gone = index.paths[1]
    (photos / index.paths[0]).unlink()
    report = index.remove([0, 1]).report
    assert (report.removed, report.still_there) == (2, 1)
    assert gone in add_all().paths


def test_forgotten_image_stays_out_whatever_happens_to_its_file(index, photos, add_all):
    gone = index.paths[1]
    after = index.remove([1], paths=["apple/bad.png"], forget=True)
    assert (after.report.removed, after.report.still_there) == (1, 0)
    assert after.info()["forgotten"] == 2
    again = add_all(retry_failed=True, rehash=True)
    assert (again.report.added, again.report.failed, again.failures) == (0, 0, [])
    photo(photos / gone, 77)
    assert gone not in add_all().paths
    assert gone not in add_all().compact().paths
    (photos / gone).rename(photos / "apple/other.png")
    assert "apple/other.png" in add_all().paths  # the name was forgotten, not the picture
    assert again.verify().ok


def test_manifest_has_no_new_key_unless_something_was_forgotten(index):
    assert "forgotten" not in json.loads((index.path / "manifest.json").read_bytes())
    index.remove([1], forget=True)
    names = json.loads((index.path / "manifest.json").read_bytes())["forgotten"]
    assert read_manifest(index.path).forgotten == tuple(names) == (index.paths[1],)


def test_command_says_what_comes_back_and_keeps_out_what_should_not(matvit, index):
    code, out, err = matvit("index", "remove", index.path, index.paths[1])
    assert (code, out) == (0, f"5 images in {index.path}: 1 removed.\n")
    assert "1 of them are still where they were: `matvit index add` brings them back" in err
    code, out, err = matvit("index", "remove", index.path, index.paths[2], "--forget", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["still_there"] == 0


@pytest.mark.parametrize("mmap", [False, True])
def test_pickled_index_is_its_place_and_opens_what_is_there(
    index, photos, tmp_path, monkeypatch, mmap
):
    monkeypatch.chdir(tmp_path)
    opened = ImageIndex.open(index.path.name, mmap=mmap)
    data = pickle.dumps(opened)
    assert len(data) < 500
    monkeypatch.chdir("/")
    queries = np.random.default_rng(1).standard_normal((3, DIM))
    for found, expected in zip(
        pickle.loads(data).search(queries, 4),
        opened.search(queries, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    photo(photos / "apple/new.png", 30)
    index.add(ToyEncoder(), Corpus.open(photos))
    assert len(pickle.loads(data)) == 7
