"""Building: every image that can be read, in its own row, or nothing at all.

Mutants these must catch: rows shifted by a bad image, by a batch or by a shard; a folder of
somebody else cleared or built into; remains of a failed build; a submodel that embeds.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from building import SAME, assert_refused, assert_rows_are_their_own_images
from toy import ToyEncoder

from indexing import stage, write
from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from indexing.index import ImageIndex
from indexing.store.folder import writer_lock
from matvit.embedding import embed
from matvit.extraction import extract


@pytest.mark.parametrize(("batch_size", "shard_size"), [(256, 100), (1, 4), (5, 7), (5, 100)])
def test_every_row_is_the_embedding_of_its_own_image(
    tiny_model, photo_folder, tmp_path, monkeypatch, batch_size, shard_size
):
    bad = ["apple/01.jpg", "bread/00.jpg", "cheese/99.jpg"]
    for name in bad:
        (photo_folder / name).write_text("no image")
    corpus = Corpus.open(photo_folder)
    monkeypatch.setattr(write, "SHARD_SIZE", shard_size)
    index = ImageIndex.build(
        tiny_model, corpus, tmp_path / "index", decoders=Decoders(batch_size=batch_size)
    )
    assert len(index) == 12
    assert index.ids.tolist() == list(range(12))
    assert_rows_are_their_own_images(index, tiny_model, corpus)
    assert [failure.path for failure in index.failures] == bad


def test_shards_are_numbered_by_the_corpus_alone(tiny_model, photo_folder, tmp_path, monkeypatch):
    for name in ("00.png", "03.png", "06.png", "09.png"):
        (photo_folder / "apple" / name).write_text("no image")
    monkeypatch.setattr(write, "SHARD_SIZE", 4)
    ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "index")
    rows = [
        pq.read_metadata(tmp_path / f"index/metadata/metadata_{number:06d}.parquet").num_rows
        for number in range(3)
    ]
    assert rows == [0, 4, 4]


def test_index_folder_holds_the_published_files(tiny_model, corpus, tmp_path):
    ImageIndex.build(tiny_model, corpus, tmp_path / "new/folders/index")
    root = tmp_path / "new/folders/index"
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert files == [
        "LOCK",
        "failures/failures_000000.parquet",
        "img_emb/img_emb_000000.npy",
        "index/knn_g1.faiss",
        "manifest.json",
        "manifest.json.prev",
        "metadata/metadata_000000.parquet",
    ]


def test_subset_is_indexed_in_its_own_order(tiny_model, corpus, tmp_path):
    index = ImageIndex.build(tiny_model, corpus.subset([7, 2]), tmp_path / "index")
    assert index.paths == [corpus.name(7), corpus.name(2)]
    assert index.image_bytes(0) == corpus.read(7)


def test_progress_goes_to_stderr_and_only_when_asked(
    tiny_model, corpus, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ImageIndex.build(tiny_model, corpus, tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    ImageIndex.build(tiny_model, corpus, tmp_path / "loud", progress=True)
    output, errors = capfd.readouterr()
    assert output == ""
    assert "12/12" in errors
    assert "img/s" in errors


def test_existing_index_is_never_overwritten(tiny_model, corpus, tmp_path):
    index = ImageIndex.build(tiny_model, corpus.subset([1, 2, 3]), tmp_path / "index")
    message = "already holds an index of 3 images; add to it with `matvit index add`"
    assert_refused(tiny_model, corpus, tmp_path / "index", FileExistsError, message)
    assert ImageIndex.open(tmp_path / "index").paths == index.paths


def test_existing_index_that_is_damaged_is_not_overwritten_either(tiny_model, corpus, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index/manifest.json").write_text("{")
    message = "already holds an index of images that cannot be read"
    assert_refused(tiny_model, corpus, tmp_path / "index", FileExistsError, message)


@pytest.mark.parametrize("name", ["notes.txt", "img_emb", "manifest.json.prev"])
def test_folder_with_anything_else_is_refused(tiny_model, corpus, tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).touch()
    message = f"is not empty and not an index .it holds '{name}'.; choose another folder"
    assert_refused(tiny_model, corpus, tmp_path / "mine", FileExistsError, message)


def test_file_is_refused(tiny_model, corpus, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; an index is a folder"):
        ImageIndex.build(tiny_model, corpus, tmp_path / "file")


def test_empty_folder_is_built_into(tiny_model, corpus, tmp_path):
    (tmp_path / "index").mkdir()
    assert len(ImageIndex.build(tiny_model, corpus, tmp_path / "index")) == 12


def test_remains_of_a_killed_build_are_built_over(tiny_model, corpus, tmp_path):
    root = tmp_path / "index"
    ImageIndex.build(tiny_model, corpus, root)
    (root / "manifest.json").rename(root / "manifest.json.tmp")  # killed just before the commit
    (root / "manifest.json.prev").unlink()
    (root / "img_emb/img_emb_000001.npy.tmp").write_bytes(b"half a sh")
    with pytest.raises(FileNotFoundError, match="no index at"):
        ImageIndex.open(root)
    assert len(ImageIndex.build(tiny_model, corpus.subset([0, 1]), root)) == 2
    assert [file.name for file in (root / "img_emb").iterdir()] == ["img_emb_000000.npy"]


def test_an_index_that_lost_its_manifest_is_not_built_over(tiny_model, corpus, tmp_path):
    root = tmp_path / "index"
    ImageIndex.build(tiny_model, corpus, root).remove([0])
    before = (root / "manifest.json.prev").read_bytes()
    (root / "manifest.json").unlink()
    message = "the state before it is in manifest.json.prev: copy that to manifest.json to go back"
    with pytest.raises(FileExistsError, match=f"whose manifest.json is gone; {message}"):
        ImageIndex.build(tiny_model, corpus, root)
    with pytest.raises(FileNotFoundError, match=message):
        ImageIndex.open(root)
    (root / "manifest.json").write_bytes(before)
    assert ImageIndex.open(root).verify().ok


def test_second_writer_is_refused_and_harms_nothing(tiny_model, corpus, tmp_path):
    root = tmp_path / "index"
    root.mkdir()
    with writer_lock(root):
        (root / "img_emb").mkdir()
        (root / "img_emb/img_emb_000000.npy").write_bytes(b"being written")
        message = f"is being written by process {os.getpid()}"
        assert_refused(tiny_model, corpus, root, BlockingIOError, message)


def test_empty_corpus_is_refused(tiny_model, corpus, tmp_path):
    message = "no images to index: the corpus at .*photos is empty"
    assert_refused(tiny_model, corpus.subset([]), tmp_path / "index", ValueError, message)


def test_corpus_of_bad_images_only_leaves_nothing_behind(tiny_model, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "bad" / name).write_text("no image")
    corpus = Corpus.open(tmp_path / "bad")
    message = "none of the 2 images in .*bad could be read; the first is 1.jpg: not a readable"
    assert_refused(tiny_model, corpus, tmp_path / "index", ValueError, message)
    (tmp_path / "empty").mkdir()
    assert_refused(tiny_model, corpus, tmp_path / "empty", ValueError, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_embedding_without_a_direction_stops_the_build(
    tiny_model, corpus, tmp_path, monkeypatch, value
):
    def broken(encoder, pixels, **options):
        vectors = embed(encoder, pixels, **options)
        vectors[5] = value
        return vectors

    monkeypatch.setattr(stage, "embed", broken)
    message = f"encoder tiny has no direction for {corpus.name(5)}: its embedding has length"
    assert_refused(tiny_model, corpus, tmp_path / "index", ValueError, message)


def test_embeddings_of_another_shape_stop_the_build(tiny_model, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "embed", lambda *_, **__: np.ones((1, 16), np.float32) / 4)
    message = r"encoder tiny returned \(1, 16\), wanted \(12, 16\)"
    assert_refused(tiny_model, corpus, tmp_path / "index", ValueError, message)


def test_encoder_with_damaged_weights_is_refused(tiny_model, corpus, tmp_path):
    broken = copy.deepcopy(tiny_model)
    next(broken.parameters()).data.fill_(float("nan"))
    assert_refused(broken, corpus, tmp_path / "index", ValueError, "not finite")


def test_submodel_cut_from_an_encoder_cannot_build(tiny_model, corpus, tmp_path):
    small = extract(tiny_model, tiny_model.submodel("S"))
    message = "embedded at full size, but .* is only the submodel S; build it with the whole"
    assert_refused(small, corpus, tmp_path / "index", ValueError, message)


def test_nothing_in_8_bits_builds_an_index(photo_folder, tmp_path):
    class Rounded(ToyEncoder):
        def submodel(self, spec=None):
            return dataclasses.replace(super().submodel(spec), int8=True)

    with pytest.raises(ValueError, match="at full size, but toy is only the submodel XL:int8"):
        ImageIndex.build(Rounded(), Corpus.open(photo_folder), tmp_path / "i")


def test_images_are_embedded_at_full_size(tiny_model, corpus, tmp_path):
    index = ImageIndex.build(tiny_model, corpus, tmp_path / "index")
    pixels = np.stack([tiny_model.preprocess.pixels(corpus.read(i)) for i in range(12)])
    for size, same in (("XL", True), ("L", False)):
        cosines = (index.embeddings[:] * embed(tiny_model, pixels, size)).sum(axis=1)
        assert (cosines > SAME).all() == same


def test_interrupt_leaves_nothing_behind(tiny_model, corpus, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "commit", interrupted)
    assert_refused(tiny_model, corpus, tmp_path / "index", KeyboardInterrupt)
