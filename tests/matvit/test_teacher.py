from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file
from tiny_training import RECIPE, colours
from torch.nn.functional import normalize

from matvit.model import MatViT
from matvit.torch_runtime import normalize_pixels
from matvit.training.augment import crop
from matvit.training.teacher import Answers, Said, Teacher, ask
from matvit.training.teachers import open_teacher

NAME = "test_resnet"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=False, num_classes=1000).eval()


@pytest.fixture
def weights(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def look(images: torch.Tensor) -> Said:
    """Mean colours of the four quarters, and as class scores those of the whole."""
    quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
    return Said(normalize(quarters + 1, dim=1), images.mean(dim=(2, 3)) / 50)


TEACHER = Teacher("colours", "0123456789abcdef", 24, 12, 3, torch.device("cpu"), look)


def asked(folder, teacher=TEACHER, **options) -> Answers:
    return ask(teacher, colours(), folder, **{"views": 3, "min_area": 0.3, **options})


def test_a_timm_model_says_what_timm_computes(network, weights):
    teacher = open_teacher(NAME, weights=weights, img_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert (teacher.name, teacher.img_size, teacher.classes) == (NAME, 32, 1000)
    images = torch.rand(2, 3, 32, 32) * 255
    said = teacher.look(images)
    with torch.no_grad():
        features = network.forward_features((images / 255 - 0.5) / 0.25)
        vectors = network.forward_head(features, pre_logits=True)
        scores = network.forward_head(features)
    # It may compute in bfloat16.
    torch.testing.assert_close(said.vectors, normalize(vectors, dim=1), rtol=0, atol=0.03)
    torch.testing.assert_close(said.scores, scores, rtol=0.05, atol=0.05)
    assert said.vectors.shape == (2, teacher.dim)


def test_weights_under_other_names_are_taken_in_order(network, weights, tmp_path):
    renamed = {f"layer{n}": value for n, value in enumerate(network.state_dict().values())}
    torch.save({"state_dict": renamed}, tmp_path / "renamed.pth")
    by_order = open_teacher(NAME, weights=tmp_path / "renamed.pth")
    assert by_order.fingerprint == open_teacher(NAME, weights=weights).fingerprint
    assert by_order.img_size == 160  # what timm knows of it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", r"cannot read weights from .*: .*give a \.safetensors file"),
        ({"a": torch.zeros(3)}, "does not hold the .* tensors of test_resnet, neither by name nor"),
        ([1], "does not hold the .* tensors of test_resnet"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        open_teacher(NAME, weights=path)
    assert "\n" not in str(caught.value)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot read weights"):
        open_teacher(NAME, weights=tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()


def test_weights_out_of_reach_say_how_to_give_them(monkeypatch):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="timm cannot load 'test_resnet'") as caught:
        open_teacher(NAME)
    assert str(caught.value).endswith("or give them as a file with --teacher-weights")


def test_an_encoder_teaches_its_vectors_and_its_classes(tmp_path):
    torch.manual_seed(0)
    model = MatViT(RECIPE.model, RECIPE.preprocess(), "mine")
    model.save(tmp_path / "mine")
    teacher = open_teacher(str(tmp_path / "mine"))
    assert (teacher.name, teacher.img_size, teacher.dim, teacher.classes) == ("mine", 16, 16, 0)
    images = torch.rand(2, 3, 16, 16) * 255
    with torch.no_grad():
        expected = model(normalize_pixels(images, model.preprocess))
    torch.testing.assert_close(teacher.look(images).vectors, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("matvit-tiny64", {"weights": "x.pth"}, "weights go with the name of a timm model"),
        ("resnet_9000", {}, "timm cannot load 'resnet_9000': Unknown model"),
        ("matvit-tiny64", {"img_size": 60}, "cannot look at images of 60 px: .*--teacher-size"),
        (__file__, {}, "neither an encoder nor an ONNX file; .* --teacher NAME --teacher-weights"),
    ],
)
def test_what_cannot_teach_is_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        open_teacher(source, **options)


def graph(path, kind: str) -> None:
    """An ONNX graph whose vectors are mean colours: of pixels, or of normalised images."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    pixels = kind == "uint8"
    shape = ["batch", 8, 8, 3] if pixels else ["batch", 3, "height", "width"]
    images = helper.make_tensor_value_info("images", types.UINT8 if pixels else types.FLOAT, shape)
    axes = helper.make_tensor("axes", types.INT64, [2], [1, 2] if pixels else [2, 3])
    nodes = [
        helper.make_node("Cast", ["images"], ["given"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["given", "axes"], ["vectors"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("vectors", types.FLOAT, ["batch", 3])]
    if not pixels:
        nodes.append(helper.make_node("Neg", ["vectors"], ["scores"]))
        outputs.append(helper.make_tensor_value_info("scores", types.FLOAT, ["batch", 3]))
    made = helper.make_graph(nodes, "test", [images], outputs, [axes])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=8), path)


def test_an_onnx_graph_of_pixels_teaches(tmp_path):
    pytest.importorskip("onnxruntime")
    graph(tmp_path / "model.onnx", "uint8")
    teacher = open_teacher(str(tmp_path / "model.onnx"))
    assert (teacher.name, teacher.img_size, teacher.dim, teacher.classes) == ("model", 8, 3, 0)
    images = torch.randint(0, 256, (2, 3, 8, 8)).float()
    expected = normalize(images.mean(dim=(2, 3)), dim=1)
    torch.testing.assert_close(teacher.look(images).vectors, expected)


def test_an_onnx_graph_of_normalised_images_teaches(tmp_path):
    pytest.importorskip("onnxruntime")
    graph(tmp_path / "model.onnx", "float")
    plain = open_teacher(str(tmp_path / "model.onnx"))
    (tmp_path / "encoder.json").write_text(
        '{"preprocess": {"image_size": 10, "mean": [0, 0, 0], "std": [1, 1, 1]}, "more": 1}'
    )
    described = open_teacher(str(tmp_path / "model.onnx"))
    assert (plain.img_size, described.img_size, described.classes) == (224, 10, 3)
    assert plain.fingerprint != described.fingerprint
    images = torch.rand(2, 3, 10, 10) * 255
    means = images.mean(dim=(2, 3)) / 255
    said = described.look(images)
    torch.testing.assert_close(said.vectors, normalize(means, dim=1))
    torch.testing.assert_close(said.scores, -means)


def test_a_graph_that_is_none_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken.onnx").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"broken\.onnx cannot be run: .*; export it again"):
        open_teacher(str(tmp_path / "broken.onnx"))
    with pytest.raises(FileNotFoundError, match=r"no teacher .*gone\.onnx: there is no such file"):
        open_teacher(str(tmp_path / "gone.onnx"))


def test_answers_are_what_the_teacher_says_of_the_very_views(tmp_path):
    answers, data = asked(tmp_path), colours()
    assert torch.equal(answers.crops[0], torch.eye(2, 3).expand(len(data), 2, 3))
    rows, views = torch.tensor([3, 0, 29]), torch.tensor([0, 2, 1])
    for row, view, said in zip(rows, views, answers.of(rows, views), strict=True):
        image = torch.from_numpy(data.pixels[row]).permute(2, 0, 1)[None]
        shown = crop(image, answers.crops[view, row][None], 24, "bicubic").clamp(0, 255)
        expected = torch.cat(look(shown), dim=1)[0]
        torch.testing.assert_close(said.float(), expected, rtol=1e-3, atol=1e-3)  # float16
    assert (answers.dim, answers.classes) == (12, 3)


def test_every_image_shows_all_its_views_in_turn(tmp_path):
    answers, rows = asked(tmp_path), torch.arange(30)
    shown = torch.stack([answers.views(rows, epoch) for epoch in range(3)])
    assert torch.equal(shown.sort(dim=0).values, torch.arange(3)[:, None].expand(3, 30))


@pytest.mark.parametrize("cut", [0, 7])
def test_what_was_answered_is_not_asked_again(tmp_path, cut):
    counted = []

    def watched(images):
        counted.append(len(images))
        if sum(counted) > 50:
            raise KeyboardInterrupt
        return look(images)

    whole = asked(tmp_path / "whole").said
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path / "cut", replace(TEACHER, look=watched), batch_size=10)
    (path,) = (tmp_path / "cut").glob("*.f16")
    with path.open("r+b") as file:  # a kill may leave half a row behind
        file.truncate(path.stat().st_size - cut)
    counted[:] = []
    resumed = asked(tmp_path / "cut", replace(TEACHER, look=watched), batch_size=10).said
    assert sum(counted) == 90 - 50 + bool(cut)
    np.testing.assert_array_equal(resumed, whole)
    counted[:] = []
    asked(tmp_path / "cut", replace(TEACHER, look=watched))
    assert not counted


def test_other_images_teachers_and_views_are_other_answers(tmp_path):
    asked(tmp_path)
    asked(tmp_path, replace(TEACHER, fingerprint="another"))
    asked(tmp_path, replace(TEACHER, img_size=16))
    asked(tmp_path, min_area=0.5)
    others = replace(colours(), pixels=255 - colours().pixels)
    ask(TEACHER, others, tmp_path, views=3, min_area=0.3)
    assert len(list(tmp_path.glob("*.f16"))) == 5
    # Not so other labels: nobody was asked about them.
    ask(TEACHER, replace(colours(), labels=np.zeros(30, np.int64)), tmp_path, views=3, min_area=0.3)
    assert len(list(tmp_path.glob("*.f16"))) == 5


def test_an_answer_that_is_no_number_stops_it(tmp_path):
    broken = replace(TEACHER, look=lambda images: Said(look(images).vectors * torch.nan, None))
    with pytest.raises(ValueError, match="colours says something that is no finite number"):
        asked(tmp_path, replace(broken, classes=0))


def answers_of(vectors: np.ndarray) -> Answers:
    return Answers(vectors[None].astype(np.float16), vectors.shape[1], torch.zeros(0), {})


def unit_vectors() -> np.ndarray:
    """Vectors that lie mostly in five of twelve dimensions."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 12)) * np.array([5, 4, 3, 2, 1] + [0.01] * 7) + 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_the_projection_is_that_of_principal_components():
    vectors = unit_vectors().astype(np.float64)
    projection = answers_of(vectors).projection(5, 0.0)
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:5].T
    cosines = expected @ expected.T / np.outer(*[np.linalg.norm(expected, axis=1)] * 2)
    found = projection(torch.from_numpy(vectors).float()).numpy()
    np.testing.assert_allclose(found @ found.T, cosines, atol=1e-4)
    largest = projection.matrix.gather(0, projection.matrix.abs().argmax(0)[None])
    assert (largest > 0).all()


def test_whitening_evens_the_deviations_out():
    vectors = torch.from_numpy(unit_vectors()).float()

    def deviations(whitening: float) -> torch.Tensor:
        mean, matrix = answers_of(unit_vectors()).projection(5, whitening)
        return ((vectors - mean) @ matrix).std(dim=0)

    plain = deviations(0.0)
    assert plain[0] / plain[4] > 3
    torch.testing.assert_close(deviations(1.0), deviations(1.0)[:1].expand(5), rtol=1e-2, atol=0)
    halved = (plain / plain[0]).sqrt()
    torch.testing.assert_close(deviations(0.5) / plain[0], halved, rtol=1e-2, atol=0)


def test_vectors_that_fit_stay_as_they_are():
    vectors = torch.from_numpy(unit_vectors()).float()
    found = answers_of(unit_vectors()).projection(16, 0.5)(vectors)
    torch.testing.assert_close(found[:, :12], vectors, rtol=0, atol=1e-3)
    assert not found[:, 12:].any()


def test_the_bank_is_spread_over_the_set():
    answers = answers_of(unit_vectors())
    torch.testing.assert_close(
        answers.bank(3), torch.from_numpy(unit_vectors()[[0, 199, 399]]).float()
    )
    assert len(answers.bank(4096)) == 400
