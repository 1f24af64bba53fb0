"""Encoders in the cache of the hub's library, offline, against that library's own look-up."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub import constants as hub

from matvit.hub import hub_folder
from matvit.loading import load_encoder
from matvit.model import MatViT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch, encoder):
    """The tiny encoder as somebody has fetched it: links to files that are named by their hash."""
    place = tmp_path / "hub" / "models--owner--name"
    (place / "blobs").mkdir(parents=True)
    (place / "refs").mkdir()
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(encoder.iterdir())):
        shutil.copy(file, place / "blobs" / f"{number:040}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040}")
    (place / "refs" / "main").write_text(COMMIT)
    (place / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_what_was_fetched_is_loaded_without_network(cache, tiny_model, revision):
    source = f"hf-hub:owner/name{revision}"
    assert MatViT.load(source).fingerprint == tiny_model.fingerprint
    assert load_encoder(source, runtime="onnx").fingerprint == tiny_model.fingerprint
    theirs = snapshot_download(
        "owner/name", revision=revision[1:] or None, cache_dir=cache, local_files_only=True
    )
    assert hub_folder(source).samefile(theirs)


def test_the_command_takes_it_for_an_encoder(cache, matvit, shared_photos, tmp_path):
    code, _, err = matvit(
        "index", "build", shared_photos, "--out", tmp_path / "index", "--encoder",
        "hf-hub:owner/name",
    )  # fmt: skip
    assert code == 0, err


def test_what_was_never_fetched_is_named_with_the_place_that_was_looked_at(cache):
    with pytest.raises(FileNotFoundError, match=r"owner/other \(main\) is not in the cache .*hub"):
        MatViT.load("hf-hub:owner/other")


@pytest.mark.parametrize(
    "name", ["owner", "owner/..", "../owner", "owner/name/more", "owner/name@../../x", "", "a/ b"]
)
def test_what_is_no_name_is_refused(cache, name):
    with pytest.raises(ValueError, match="is no name on the hub; write hf-hub:owner/name"):
        MatViT.load(f"hf-hub:{name}")


def test_a_saved_encoder_has_a_card_that_the_hub_reads(tiny_model, tmp_path):
    folder = tiny_model.save(tmp_path / "encoder")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "matvit-retrieval"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "# tiny" in card.text
    assert tiny_model.fingerprint in card.text
    assert [line.split("|")[1].strip() for line in card.text.splitlines() if "%" in line] == [
        "S", "M", "L", "XL",
    ]  # fmt: skip


def test_a_card_that_somebody_wrote_stays(tiny_model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    tiny_model.save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
