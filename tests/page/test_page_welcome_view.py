from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from app.page import welcome_view
from app.page.welcome_view import is_built
from indexing import Corpus, ImageIndex


def test_two_visitors_who_build_the_demo_at_once_build_it_once(
    tiny_model, photo_folder, tmp_path, monkeypatch
):
    builds: list[Path] = []
    second = Thread(target=welcome_view._build, args=(tmp_path,))

    def small_demo(model, out, images, *, progress):
        builds.append(out)
        if not second.ident:
            second.start()
            second.join(0.2)
            assert second.is_alive()  # it waits
        ImageIndex.build(tiny_model, Corpus.open(photo_folder), out / "demo.index")

    monkeypatch.setattr(welcome_view, "run_demo", small_demo)
    welcome_view._build(tmp_path)
    second.join()
    assert builds == [tmp_path]
    assert len(ImageIndex.open(tmp_path / "demo.index")) == 12


def test_a_build_that_failed_leaves_the_way_free_for_the_next(tmp_path, monkeypatch):
    def full_disk(model, out, images, *, progress):
        raise OSError("no space left")

    monkeypatch.setattr(welcome_view, "run_demo", full_disk)
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            welcome_view._build(tmp_path)


def test_a_build_that_was_stopped_is_no_index(tiny_model, photo_folder, tmp_path, monkeypatch):
    path = tmp_path / "i.index"
    assert not is_built(path)
    monkeypatch.setattr("indexing.build._finish", None)  # stops when all is stored
    with pytest.raises(TypeError):
        ImageIndex.build(tiny_model, Corpus.open(photo_folder), path)
    assert (path / "manifest.json").exists()
    assert not is_built(path)
    monkeypatch.undo()
    ImageIndex.build(tiny_model, Corpus.open(photo_folder), path)
    assert is_built(path)
    (path / "manifest.json").write_text("{")
    assert is_built(path)  # what is wrong with it is told, and nothing is replaced
