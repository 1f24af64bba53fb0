"""`matvit index adopt` as people use it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from indexing.corpus.corpus import Corpus
from matvit.embedding import embed
from matvit.model import MatViT


@pytest.fixture
def vectors(encoder, shared_photos, tmp_path):
    """What the tiny encoder gives for the photos, as its owner stored it."""
    model = MatViT.load(encoder)
    (batch,) = Corpus.open(shared_photos).decode(model.preprocess)
    np.save(tmp_path / "v.npy", embed(model, batch.pixels, precision="float32"))
    return tmp_path / "v.npy"


def test_the_encoder_asks_vectors_that_were_there_before_and_another_may_not(
    matvit, encoder, shared_photos, vectors, tmp_path
):
    index = tmp_path / "index"
    said = matvit(
        "index", "adopt", vectors, "--images", shared_photos, "--encoder", encoder, "--out", index
    )
    assert said[0] == 0
    assert "12 images in" in said[1]
    assert "12 images were embedded: the lowest cosine is 1.0000" in said[2]
    model = MatViT.load(encoder)
    changed = MatViT(model.config, model.preprocess, "changed")  # other weights: its own order
    changed.save(tmp_path / "changed")
    for size in ("XL", "S"):
        code, out, _ = matvit(
            "search", index, shared_photos / "bread" / "04.png", "--encoder", encoder,
            "--submodel", size, "--json",
        )  # fmt: skip
        assert code == 0
        if size == "XL":
            assert json.loads(out)["hits"][0]["path"] == "bread/04.png"
    code, _, err = matvit(
        "search", index, shared_photos / "bread" / "04.png", "--encoder", tmp_path / "changed"
    )
    assert code == 1
    assert "was built by encoder tiny" in err


def test_the_command_counts_in_json_and_refuses_what_is_not_the_encoders(
    matvit, encoder, shared_photos, vectors, tmp_path
):
    ask = ["index", "adopt", vectors, "--images", shared_photos, "--encoder", encoder]
    code, out, _ = matvit(*ask, "--out", tmp_path / "index", "--sample", 5, "--json")
    report = json.loads(out)
    assert code == 0
    assert {key: report[key] for key in ("images", "failed", "sampled")} == {
        "images": 12, "failed": 0, "sampled": 5,
    }  # fmt: skip
    np.save(vectors, np.roll(np.load(vectors), 1, axis=0))
    code, _, err = matvit(*ask, "--out", tmp_path / "other")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "does not give these vectors" in err
