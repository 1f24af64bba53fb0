"""Checkpoints of scenic's MatViT, against what scenic's own model gives, and against NumPy.

`scenic/checkpoint_187500` was written by flax with the state that scenic's trainer saves, of random
weights of deviation 0.2; `scenic/expected.npz` has images and what scenic gives for them.

Mutants to catch: exact GELU instead of its tanh form; heads and channels swapped in a projection; a
class token added after the positions; a bias of the second layer cut off with the hidden units.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from PIL import Image

from indexing.index import ImageIndex
from matvit.conversion import scenic as module
from matvit.conversion.scenic import from_scenic, read_leaves
from matvit.loading import load_encoder
from matvit.model import MatViT

CHECKPOINT = Path(__file__).parent / "scenic" / "checkpoint_187500"
EXPECTED = np.load(Path(__file__).parent / "scenic" / "expected.npz")
SIZES = {"XL": "XL", "S": "S", "mix": "1x8,1x48"}
FLOAT32 = 1e-5  # the exact GELU differs by 1e-4


# --- what shares no code with the project -----------------------------------------------------


def packed(array: np.ndarray) -> msgpack.ExtType:
    """Pack an array as flax does."""
    return extension(array.shape, array.dtype.name, array.tobytes())


def write(path: Path, leaves: dict[str, np.ndarray]) -> Path:
    tree: dict = {}
    for name, value in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = packed(value)
    path.write_bytes(msgpack.packb({"params": tree}))
    return path


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_numpy(leaves: dict[str, np.ndarray], x: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Scenic's MatViT in float64: every name and axis as flax has it."""
    p = {name: value.astype(np.float64) for name, value in leaves.items()}
    side = p["embedding/kernel"].shape[0]
    count, rows, dim = len(x), x.shape[1] // side, len(p["embedding/bias"])
    patches = x.reshape(count, rows, side, rows, side, 3).transpose(0, 1, 3, 2, 4, 5)
    x = np.einsum("nijabc,abcd->nijd", patches, p["embedding/kernel"]) + p["embedding/bias"]
    x = x.reshape(count, -1, dim)
    if "cls" in p:
        x = np.concatenate([np.broadcast_to(p["cls"], (count, 1, dim)), x], axis=1)
    x = x + p["Transformer/posembed_input/pos_embedding"]
    for number, width in enumerate(widths):
        block = f"Transformer/encoderblock_{number}"
        at, mlp = f"{block}/MultiHeadDotProductAttention_0", f"{block}/MlpBlock_0"
        y = norm(x, p, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("ntd,dhe->nhte", y, p[f"{at}/{part}/kernel"])
            + p[f"{at}/{part}/bias"][:, np.newaxis]
            for part in ("query", "key", "value")
        )
        weights = np.exp(np.einsum("nhte,nhse->nhts", q, k) / np.sqrt(q.shape[-1]))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("nhts,nhse->nthe", weights, v)
        x = x + np.einsum("nthe,hed->ntd", mixed, p[f"{at}/out/kernel"]) + p[f"{at}/out/bias"]
        h = norm(x, p, f"{block}/LayerNorm_1") @ p[f"{mlp}/Dense_0/kernel"]
        h = h + p[f"{mlp}/Dense_0/bias"]
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        h[..., width:] = 0  # masked, as scenic does
        x = x + h @ p[f"{mlp}/Dense_1/kernel"] + p[f"{mlp}/Dense_1/bias"]
    x = norm(x, p, "Transformer/encoder_norm")
    return x[:, 0] if "cls" in p else x.mean(axis=1)


def norm(x: np.ndarray, p: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * p[f"{name}/scale"] + p[f"{name}/bias"]


def deep(levels: int) -> object:
    value: object = packed(np.ones(1, np.float32))
    for _ in range(levels):
        value = {"a": value}
    return value


def extension(*parts: object, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(parts))


# --- the facts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> MatViT:
    return from_scenic(CHECKPOINT)


@pytest.fixture(scope="module")
def state() -> dict:
    """The training state, its arrays left as they are packed."""
    return msgpack.unpackb(CHECKPOINT.read_bytes())


def images() -> torch.Tensor:
    return torch.from_numpy(EXPECTED["x"]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_gives_the_vectors_and_scores_of_scenic(model, size):
    with torch.inference_mode():
        (vectors,) = model.vectors(images(), [model.submodel(SIZES[size])])
        scores = model.classify(vectors)
    np.testing.assert_allclose(vectors, EXPECTED[f"feat_{size}"], rtol=0, atol=FLOAT32)
    np.testing.assert_allclose(scores, EXPECTED[f"logit_{size}"], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("size", SIZES)
def test_the_command_leaves_an_encoder_that_both_runtimes_load(matvit, tmp_path, size, runtime):
    code, _, err = matvit("import-scenic", CHECKPOINT, "--out", tmp_path / "encoder")
    assert code == 0
    assert "2 blocks of dimension 32, 32 px, images crop" in err
    encoder = load_encoder(tmp_path / "encoder", runtime=runtime)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    submodel = encoder.submodel(SIZES[size])
    found = encoder.embed_pixels(pixels, [submodel], "float32")[0]
    wanted = by_numpy(read_leaves(CHECKPOINT), pixels / 127.5 - 1, submodel.widths)
    np.testing.assert_allclose(found, unit(wanted), rtol=0, atol=FLOAT32)


def test_numpy_agrees_with_scenic():
    leaves = read_leaves(CHECKPOINT)
    for size, widths in {"XL": (64, 64), "S": (8, 8), "mix": (8, 48)}.items():
        found = by_numpy(leaves, EXPECTED["x"], widths)
        np.testing.assert_allclose(found, EXPECTED[f"feat_{size}"], rtol=0, atol=FLOAT32)


def test_an_index_of_it_gives_the_scores_that_numpy_gives(matvit, tmp_path):
    photos, encoder, index = tmp_path / "photos", tmp_path / "encoder", tmp_path / "index"
    photos.mkdir()
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (6, 36, 36, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(photos / f"{number}.png")
    matvit("import-scenic", CHECKPOINT, "--out", encoder)
    code, _, _ = matvit(
        "index", "build", photos, "--out", index, "--encoder", encoder, "--precision", "float32"
    )
    assert code == 0
    leaves = read_leaves(CHECKPOINT)
    seen = pictures[:, 2:-2, 2:-2] / 127.5 - 1  # the centre: 36 px is 8/7 of the input
    stored = ImageIndex.open(index).embeddings[:]
    rounded = unit(by_numpy(leaves, seen, (64, 64))).astype(np.float16).astype(np.float32)
    # An index keeps float16; where NumPy's last bit is another one, rounding may be too.
    np.testing.assert_allclose(stored, unit(rounded), rtol=0, atol=2.5e-4)
    for size, widths in {"XL": (64, 64), "S": (8, 8), "1x8,1x48": (8, 48)}.items():
        query = photos / "4.png"
        code, out, _ = matvit(
            "search", index, query, "--submodel", size, "--encoder", encoder, "--json"
        )
        assert code == 0
        hits = {hit["path"]: hit["score"] for hit in json.loads(out)["hits"]}
        asked = unit(by_numpy(leaves, seen[4:5], widths))[0]
        for number in range(6):
            assert hits[f"{number}.png"] == pytest.approx(stored[number] @ asked, abs=FLOAT32)


def test_how_images_become_square_follows_the_published_ones(model):
    seen = model.preprocess
    assert (seen.fit, seen.interpolation) == ("crop", "bilinear")
    assert seen.mean == seen.std == (0.5, 0.5, 0.5)
    assert seen.img_size / seen.crop_pct == pytest.approx(36)  # as 224 of 256, in whole pixels
    squashed = from_scenic(CHECKPOINT, fit="squash").preprocess
    assert (squashed.fit, squashed.crop_pct) == ("squash", 1)


@pytest.mark.parametrize(("side", "fit", "share"), [(224, "crop", 224 / 256), (384, "squash", 1)])
def test_at_224_px_the_centre_is_seen_and_at_384_px_everything(monkeypatch, side, fit, share):
    leaves = read_leaves(CHECKPOINT)
    tokens = (side // 8) ** 2 + 1
    leaves["Transformer/posembed_input/pos_embedding"] = np.zeros((1, tokens, 32), np.float32)
    monkeypatch.setattr(module, "read_leaves", lambda path: leaves)
    seen = from_scenic(CHECKPOINT).preprocess
    assert (seen.img_size, seen.fit, seen.crop_pct) == (side, fit, share)


@pytest.mark.parametrize("wrap", [
    lambda state: {"params": state["params"]},
    lambda state: {"optimizer": {"state": state["opt_state"], "target": state["params"]}},
    lambda state: {"optimizer": {"target": {"params": state["params"]}}, "global_step": 3},
    lambda state: state["params"],
], ids=["params", "optimizer/target", "both", "bare"])  # fmt: skip
def test_the_weights_are_found_wherever_scenic_kept_them(model, state, tmp_path, wrap):
    path = tmp_path / "MatViT-B16-IN1K"
    path.write_bytes(msgpack.packb(wrap(state)))
    assert from_scenic(path).fingerprint == model.fingerprint
    assert from_scenic(path).name == "MatViT-B16-IN1K"


def test_without_a_class_token_all_tokens_are_averaged_after_the_norm(state, tmp_path):
    params = {key: value for key, value in state["params"].items() if key != "cls"}
    kept = read_leaves(CHECKPOINT)["Transformer/posembed_input/pos_embedding"][:, 1:]
    transformer = {**params["Transformer"], "posembed_input": {"pos_embedding": packed(kept)}}
    path = tmp_path / "pooled"
    path.write_bytes(msgpack.packb({"params": {**params, "Transformer": transformer}}))
    model = from_scenic(path)
    with torch.inference_mode():
        found = model.vectors(images(), [model.submodel("S")])[0]
    wanted = by_numpy(read_leaves(path), EXPECTED["x"], (8, 8))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_weights_of_16_bits_are_read_as_they_are(state, tmp_path, kind):
    bias = read_leaves(CHECKPOINT)["embedding/bias"]
    rounded = torch.from_numpy(bias).to(getattr(torch, kind))
    content = rounded.view(torch.int16).numpy().tobytes()
    leaf = msgpack.ExtType(1, msgpack.packb(((32,), kind, content)))
    embedding = {**state["params"]["embedding"], "bias": leaf}
    path = tmp_path / kind
    path.write_bytes(msgpack.packb({"params": {**state["params"], "embedding": embedding}}))
    np.testing.assert_array_equal(read_leaves(path)["embedding/bias"], rounded.float().numpy())


def test_every_leaf_that_is_missing_is_named(tmp_path):
    leaves = read_leaves(CHECKPOINT)
    for name in leaves:
        path = write(tmp_path / "missing", {k: v for k, v in leaves.items() if k != name})
        with pytest.raises(ValueError, match="is no MatViT of scenic's") as refused:
            from_scenic(path)
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Transformer/encoderblock_0/MlpBlock_0/Dense_2/bias", "nothing takes .*Dense_2/bias"),
        ("Transformer/encoderblock_3/LayerNorm_0/scale", "it has no .*encoderblock_2"),
        ("pre_logits/bias", "pre_logits/bias, which cannot be represented"),
        ("MAPHead_0/probe", "MAPHead_0/probe, which cannot be represented"),
    ],
)
def test_a_leaf_that_is_left_over_is_named(tmp_path, name, said):
    leaves = {**read_leaves(CHECKPOINT), name: np.ones(32, np.float32)}
    with pytest.raises(ValueError, match=said):
        from_scenic(write(tmp_path / "more", leaves))


def test_a_leaf_of_another_shape_or_without_numbers_is_named(tmp_path):
    leaves = read_leaves(CHECKPOINT)
    wrong = {**leaves, "embedding/bias": np.ones(31, np.float32)}
    with pytest.raises(ValueError, match=r"embedding/bias has the shape \(31,\), wanted \(32,\)"):
        from_scenic(write(tmp_path / "shape", wrong))
    bad = {**leaves, "embedding/bias": np.full(32, np.nan, np.float32)}
    with pytest.raises(ValueError, match=r"values of patch_embed.proj.bias are not finite"):
        from_scenic(write(tmp_path / "nan", bad))


HOSTILE = {
    "more bytes than its shape": (extension((2,), "float32", b"1234"), r"shape \[2\]"),
    "a shape that overflows": (extension((1 << 40,), "float32", b""), "has the shape"),
    "a shape below zero": (extension((-1,), "float32", b""), "has the shape"),
    "no shape": (extension("many", "float32", b"1234"), "has the shape"),
    "objects": (extension((1,), "object", b"12345678"), "of type 'object'"),
    "complex numbers": (extension((1,), "complex64", b"12345678"), "of type 'complex64'"),
    "a scalar": (extension((), "float32", b"1234", code=3), "extension of code 3"),
    "too few parts": (extension((1,), "float32"), "not shape, type and bytes"),
    "an array in chunks": (
        {"__msgpack_chunked_array__": True, "shape": {"0": 4}},
        "an array in chunks",
    ),
    "a list": ([1, 2, 3], "a list of 3"),
    "a text": ("weights", "is a str, weights are arrays"),
    "maps without end": (deep(40), "nested deeper than 12"),
    "a key that is no text": ({3: extension((1,), "float32", b"1234")}, "cannot read"),
    "a key that is a path": ({"a/b": extension((1,), "float32", b"1234")}, "no name of a weight"),
    "many entries": ({str(n): {str(m): 1 for m in range(400)} for n in range(50)}, "entries"),
    "a wide map": ({str(n): 1 for n in range(600)}, "max_map_len"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, what):
    content, said = HOSTILE[what]
    path = tmp_path / "hostile"
    path.write_bytes(msgpack.packb({"params": {"cls": content}}))
    with pytest.raises(ValueError, match=said) as refused:
        from_scenic(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [
    b"", b"\x80", b"PK\x03\x04 not msgpack", b"\xdf\xff\xff\xff\xff", b"\xc1",
    msgpack.packb({"weights": 1}), msgpack.packb([1]), msgpack.packb({"params": {}}) + b"\x00",
    b"\x82" + 2 * (msgpack.packb("params") + b"\x80"), b"\x81\xa6params\xc9\xff\xff\xff\xff\x01",
    b"\x81\xa6params" + 100_000 * b"\x81\xa1a" + b"\x01",
])  # fmt: skip
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "no-checkpoint"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no-checkpoint"):
        from_scenic(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.9, 0.9999])
def test_half_a_file_is_refused(tmp_path, share):
    data = CHECKPOINT.read_bytes()
    path = tmp_path / "half"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="cannot read"):
        from_scenic(path)


def test_the_command_says_in_one_line_what_is_wrong(matvit, tmp_path):
    code, _, err = matvit("import-scenic", tmp_path / "gone", "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (1, 1)
    (tmp_path / "junk").write_bytes(b"\x80")
    code, _, err = matvit("import-scenic", tmp_path / "junk", "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (1, 1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, _, err = matvit("import-scenic", CHECKPOINT, "--out", tmp_path / "full")
    assert code == 1
    assert "is not empty" in err
