"""Networks that may teach: timm models, encoders of this project, ONNX graphs."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from torch import Tensor, nn
from torch.nn.functional import normalize

from matvit.checkpoint import SETTINGS, bundled_encoders
from matvit.conversion.from_timm import create_timm
from matvit.files import read_json
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from matvit.torch_runtime import precision_of, resolve_precision
from matvit.training.teacher import Said, Teacher

Colour = tuple[float, float, float]


def open_teacher(
    source: str,
    *,
    weights: str | Path | None = None,
    img_size: int | None = None,
    mean: Colour | None = None,
    std: Colour | None = None,
    device: str | torch.device = "cpu",
) -> Teacher:
    """Open a network to learn from.

    Args:
        source: A timm model, such as `tf_efficientnet_lite2`; a bundled encoder or a checkpoint
            folder; or an ONNX file: one that `matvit extract` wrote, or any whose only input is
            normalised float32 images, channels first. Its first output is taken for vectors, a
            second one for class scores.
        weights: File with the weights of a timm model, `.safetensors` or what `torch.save` wrote;
            no code in it is run. None takes what timm offers.
        img_size: Side of the input in pixels; None is what the network was made for.
        mean: Subtracted per channel, on the scale 0..1; None is what the network was trained with.
        std: Divided by per channel, likewise.
        device: Where it runs; an ONNX file runs on the CPU.

    Raises:
        FileNotFoundError: If there is no such file or encoder.
        ValueError: If it cannot be used; the message says why, and what to do.

    Examples:
        >>> teacher = open_teacher("matvit-tiny64")
        >>> teacher.name, teacher.img_size
        ('matvit-tiny64', 64)
    """
    where = torch.device(device)
    is_ours = source in bundled_encoders() or (Path(source) / SETTINGS).is_file()
    if weights is not None and (is_ours or source.endswith(".onnx")):
        raise ValueError(f"weights go with the name of a timm model; {source} has its own")
    if source.endswith(".onnx"):
        return _from_onnx(Path(source), img_size, mean, std)
    if is_ours:
        return _from_encoder(MatViT.load(source, device=where), img_size)
    if Path(source).exists():
        raise ValueError(
            f"{source} is neither an encoder nor an ONNX file; weights of a timm model go with "
            "its name: --teacher NAME --teacher-weights FILE"
        )
    return _from_timm(source, weights, img_size, mean, std, where)


def _from_timm(
    name: str,
    weights: str | Path | None,
    img_size: int | None,
    mean: Colour | None,
    std: Colour | None,
    device: torch.device,
) -> Teacher:
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    resized = img_size if known is not None and known.fixed_input_size else None
    try:
        model: Any = create_timm(name, weights is None, resized)
    except ValueError as error:
        raise ValueError(f"{error}; or give them as a file with --teacher-weights") from error
    if weights is not None:
        _load_weights(model, name, Path(weights))
    model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    resolve: Any = resolve_data_config
    settings = resolve({}, model=model)
    to_input = _Colours(mean or settings["mean"], std or settings["std"])
    precision = resolve_precision(device)

    def look(images: Tensor) -> Said:
        with torch.inference_mode(), precision_of(device, precision):
            features = model.forward_features(to_input(images))
            vectors = model.forward_head(features, pre_logits=True)
            return _said(vectors, model.forward_head(features) if model.num_classes else None)

    side = img_size or settings["input_size"][-1]
    return _teacher(name, _hash(name, to_input, model.state_dict()), side, device, look)


def _from_encoder(encoder: MatViT, img_size: int | None) -> Teacher:
    to_input = _Colours(encoder.preprocess.mean, encoder.preprocess.std)
    precision = resolve_precision(encoder.device)

    def look(images: Tensor) -> Said:
        with torch.inference_mode(), precision_of(encoder.device, precision):
            vectors = encoder.vectors(to_input(images), [encoder.submodel()])[0]
            return _said(vectors, encoder.classify(vectors) if encoder.config.num_classes else None)

    # An encoder's own fingerprint says nothing of its head.
    fingerprint = _hash(encoder.fingerprint, to_input, encoder.state_dict())
    return _teacher(
        encoder.name, fingerprint, img_size or encoder.preprocess.img_size, encoder.device, look
    )


def _from_onnx(
    path: Path, img_size: int | None, mean: Colour | None, std: Colour | None
) -> Teacher:
    if not path.is_file():
        raise FileNotFoundError(f"no teacher {path}: there is no such file")
    try:
        runtime: Any = import_module("onnxruntime")
        graph = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except ImportError as error:
        raise ValueError(f"{path} needs ONNX Runtime: pip install onnxruntime") from error
    except Exception as error:  # of many kinds, all of the runtime's own
        raise ValueError(f"{path} cannot be run: {_reason(error)}; export it again") from error
    spec, beside = Preprocess(), path.with_name("encoder.json")
    if beside.is_file():
        spec = read_json(beside, _GraphSettings, "the description of a graph").preprocess
    taken = graph.get_inputs()[0]
    takes_pixels = taken.type == "tensor(uint8)"  # and normalises them itself
    fixed = taken.shape[1 if takes_pixels else -1]
    to_input = _Colours(mean or spec.mean, std or spec.std)

    def look(images: Tensor) -> Said:
        given = to_input(images)
        if takes_pixels:
            given = images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        outcome = [torch.from_numpy(each) for each in graph.run(None, {taken.name: given.numpy()})]
        return _said(outcome[0], outcome[1] if len(outcome) > 1 else None)

    side = img_size or (fixed if isinstance(fixed, int) else spec.img_size)
    fingerprint = _hash(hashlib.sha256(path.read_bytes()).hexdigest(), to_input, {})
    return _teacher(path.stem, fingerprint, side, torch.device("cpu"), look)


class _GraphSettings(msgspec.Struct):
    """What is read of the description beside an ONNX graph."""

    preprocess: Preprocess


class _Colours:
    """Brings pixels on the scale 0..255 to the mean and deviation that a network expects."""

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        self.mean, self.std = ([255 * float(value) for value in each] for each in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        return (images - mean) / std


def _load_weights(model: nn.Module, name: str, path: Path) -> None:
    """Load weights by name; or in order, if other names stand for tensors of the same shapes."""
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"cannot read weights from {path}: {_reason(error)}; "
            "give a .safetensors file, or a state dict that torch.save wrote"
        ) from error
    found = found.get("state_dict", found.get("model", found)) if isinstance(found, dict) else {}
    wanted = model.state_dict()
    if found.keys() != wanted.keys():
        found = dict(zip(wanted, found.values(), strict=False)) if len(found) == len(wanted) else {}
    shapes = {key: getattr(value, "shape", None) for key, value in found.items()}
    if shapes != {key: value.shape for key, value in wanted.items()}:
        raise ValueError(
            f"{path} does not hold the {len(wanted)} tensors of {name}, neither by name nor in "
            "order; name the timm model that they are of with --teacher"
        )
    model.load_state_dict(found)


def _said(vectors: Tensor, scores: Tensor | None) -> Said:
    unit = normalize(vectors.float().flatten(1), dim=-1)
    return Said(unit, None if scores is None else scores.float())


def _teacher(
    name: str,
    fingerprint: str,
    img_size: int,
    device: torch.device,
    look: Callable[[Tensor], Said],
) -> Teacher:
    """Show a teacher a first image, to find out what it says.

    Raises:
        ValueError: If it cannot look at it.
    """
    try:
        said = look(torch.zeros(1, 3, img_size, img_size, device=device))
    except Exception as error:  # whatever a network has against the size of its input
        raise ValueError(
            f"teacher {name} cannot look at images of {img_size} px: {_reason(error)}; "
            "choose another side with --teacher-size"
        ) from error
    classes = 0 if said.scores is None else said.scores.shape[1]
    return Teacher(name, fingerprint, img_size, said.vectors.shape[1], classes, device, look)


def _hash(what: str, to_input: _Colours, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{what} {to_input.mean} {to_input.std}".encode())
    for key, tensor in tensors.items():
        digest.update(f"\n{key} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
