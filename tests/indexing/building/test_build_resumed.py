"""Builds that were stopped: what they leave, and going on from it."""

from __future__ import annotations

import copy
import sys

import pytest
from building import assert_refused, assert_rows_are_their_own_images

from indexing import stage, write
from indexing.corpus.corpus import Corpus
from indexing.index import ImageIndex, IndexMismatchError
from indexing.store.folder import commit
from matvit.embedding import embed
from matvit.model import MatViT


@pytest.fixture
def interrupted(tiny_model, corpus, tmp_path, monkeypatch):
    """A build of shards of four images, interrupted after its second commit."""
    commits = []

    def late(folder, manifest):
        commit(folder, manifest)
        commits.append(manifest)
        if len(commits) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "commit", late)
        patch.setattr(write, "SHARD_SIZE", 4)
        with pytest.raises(KeyboardInterrupt):
            ImageIndex.build(tiny_model, corpus, tmp_path / "index")
    return tmp_path / "index"


def test_unfinished_index_does_not_open_and_says_what_to_do(interrupted):
    message = "index is unfinished: 8 of 12 images are stored; run the same `matvit index build`"
    with pytest.raises(ValueError, match=message):
        ImageIndex.open(interrupted)


def test_same_call_embeds_only_what_is_missing(
    tiny_model, corpus, interrupted, tmp_path, monkeypatch
):
    embedded = []

    def counting(encoder, pixels, **options):
        embedded.append(len(pixels))
        return embed(encoder, pixels, **options)

    monkeypatch.setattr(stage, "embed", counting)
    resumed = ImageIndex.build(tiny_model, corpus, interrupted)
    assert sum(embedded) == 4
    monkeypatch.setattr(write, "SHARD_SIZE", 4)
    whole = ImageIndex.build(tiny_model, corpus, tmp_path / "whole")
    assert (interrupted / "manifest.json").read_bytes() == (
        tmp_path / "whole/manifest.json"
    ).read_bytes()
    assert resumed.metadata.equals(whole.metadata)
    assert_rows_are_their_own_images(resumed, tiny_model, corpus)


def test_progress_of_a_resumed_build_starts_where_it_stopped(
    tiny_model, corpus, interrupted, capfd, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ImageIndex.build(tiny_model, corpus, interrupted, progress=True)
    errors = capfd.readouterr().err
    assert "8/12" in errors
    assert "12/12" in errors


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "elsewhere"])
def test_unfinished_index_of_another_list_is_refused(
    tiny_model, photo_folder, interrupted, tmp_path, change
):
    photo = photo_folder / "cheese/11.png"
    if change == "added":
        (photo_folder / "cheese/12.png").write_bytes(photo.read_bytes())
    elif change == "removed":
        photo.unlink()
    elif change == "renamed":
        photo.rename(photo.with_name("12.png"))
    else:
        photo_folder = photo_folder.rename(tmp_path / "elsewhere")
    message = "was begun with another list of images: 12 in .*photos, now"
    assert_refused(tiny_model, Corpus.open(photo_folder), interrupted, ValueError, message)


def test_unfinished_index_of_another_encoder_is_refused(tiny_model, corpus, interrupted):
    other = copy.deepcopy(tiny_model)
    next(other.parameters()).data.add_(0.01)
    assert_refused(other, corpus, interrupted, IndexMismatchError, "was built by encoder tiny")


def test_damaged_shard_of_an_unfinished_index_is_made_again(tiny_model, corpus, interrupted):
    damaged = interrupted / "img_emb/img_emb_000001.npy"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    index = ImageIndex.build(tiny_model, corpus, interrupted)
    assert index.verify().ok
    assert_rows_are_their_own_images(index, tiny_model, corpus)


def test_corpus_of_bad_images_only_leaves_nothing_behind_even_in_several_shards(
    tiny_model, tmp_path, monkeypatch
):
    (tmp_path / "bad").mkdir()
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (tmp_path / "bad" / name).write_text("no image")
    monkeypatch.setattr(write, "SHARD_SIZE", 1)
    message = "none of the 3 images in .*bad could be read; the first is 1.jpg: not a readable"
    corpus = Corpus.open(tmp_path / "bad")
    assert_refused(tiny_model, corpus, tmp_path / "index", ValueError, message)


def test_encoder_runs_where_it_lives_with_nothing_but_images(tiny_model, corpus, tmp_path):
    assert isinstance(tiny_model, MatViT)
    before = tiny_model.fingerprint
    ImageIndex.build(tiny_model, corpus, tmp_path / "index")
    assert tiny_model.fingerprint == before
