from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from matvit.embedding import embed
from matvit.loading import load_encoder
from matvit.onnx_folder import check_onnx, export_onnx


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("matvit-tiny64", runtime="onnx")


@pytest.fixture
def folder(encoder, tmp_path):
    export_onnx(encoder, encoder.submodel("S"), tmp_path, int8=True)
    return tmp_path


def test_the_files_say_what_they_are_and_give_the_golden_vector(encoder, folder):
    described = json.loads((folder / "encoder.json").read_text())
    assert described["fingerprint"] == encoder.fingerprint
    assert described["submodel"] == "S"
    assert described["preprocess_fingerprint"] == encoder.preprocess.fingerprint
    assert set(described["files"]) == {"model.onnx", "model.int8.onnx"}
    golden = np.load(folder / "golden.npz")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (vectors,) = session.run(["vectors"], {"images": np.stack([golden["image"]] * 2)})
    np.testing.assert_allclose(vectors, np.stack([golden["vector"]] * 2), atol=1e-5)
    np.testing.assert_allclose(embed(encoder, golden["image"][None], "S")[0], golden["vector"])


def test_what_was_written_passes_here(folder):
    described, findings = check_onnx(folder)
    assert (described.name, described.opset) == ("matvit-tiny64", 17)
    assert [(each.file, each.problem) for each in findings] == [
        ("model.onnx", None),
        ("model.int8.onnx", None),
    ]
    exact, rounded = (each.cosine for each in findings)
    assert exact > 0.99999
    assert 0.98 < rounded < 0.99999


def test_a_runtime_that_computes_wrongly_is_found_out(encoder, folder):
    other = folder / "other"
    export_onnx(encoder, encoder.submodel("M"), other)
    (folder / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    described = json.loads((folder / "encoder.json").read_text())
    found = json.loads((other / "encoder.json").read_text())
    described["files"]["model.onnx"] = found["files"]["model.onnx"]
    (folder / "encoder.json").write_text(json.dumps(described))
    wrong, right = check_onnx(folder)[1]
    assert "computes wrongly here: cosine 0." in wrong.problem
    assert right.problem is None


def test_a_graph_that_merges_tokens_is_written_and_passes_here(encoder, tmp_path):
    export_onnx(encoder, encoder.submodel("S~"), tmp_path, int8=True, opset=18)
    described, findings = check_onnx(tmp_path)
    assert described.submodel == "S~"
    assert [each.problem for each in findings] == [None, None]
    golden = np.load(tmp_path / "golden.npz")
    whole, merged = (embed(encoder, golden["image"][None], size)[0] for size in ("S", "S~"))
    np.testing.assert_allclose(merged, golden["vector"])
    assert whole @ merged < 0.9999


def test_damage_is_named(folder):
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    (folder / "model.int8.onnx").unlink()
    damaged, gone = check_onnx(folder)[1]
    assert "model.onnx" in damaged.problem
    assert "No such file" in gone.problem
    (folder / "golden.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot read .*golden.npz"):
        check_onnx(folder)
    with pytest.raises(FileNotFoundError):
        check_onnx(folder / "nowhere")


def test_an_opset_without_layer_norm_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="opset must be at least 17, got 16"):
        export_onnx(encoder, encoder.submodel("S"), tmp_path, opset=16)
