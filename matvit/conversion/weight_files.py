"""Files of weights as people have them: whatever training left around the tensors is taken off.

Nothing of a file is run: safetensors has no code, and of what `torch.save` wrote only tensors and
plain containers are read.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from matvit.files import open_regular, read_json

_CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "state_dict",
    "model_state_dict", "model", "module", "net", "weights",
)  # fmt: skip
"""Where checkpoints keep the tensors, what people mean first: averaged ones before the last."""

_DEEPEST = 4
_MOST_BYTES = 1 << 37

_HEADS = (
    "head.", "head_dist.", "fc.", "classifier.", "cls_classifier.", "distillation_classifier.",
    "dino_head.", "ibot_head.", "projector.", "projection_head.", "pooler.", "text_model.",
    "visual_projection.", "text_projection.", "decoder.", "criterion.",
)  # fmt: skip
_BESIDE = ("mask_token", "n_averaged", "logit_scale", "logit_bias", "position_ids")
"""What encoders are trained with and embed without."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file, or of a folder that holds one, or parts of one and their index.

    Containers around them are opened: `state_dict`, `model`, and averaged weights (EMA) first.

    Args:
        path: `.safetensors`, or what `torch.save` wrote; in a folder, `model.safetensors`,
            `model.safetensors.index.json` with its parts, or `pytorch_model.bin`.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it cannot be read, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no file of weights at {path}")
    try:
        with open_regular(path):  # the libraries would wait for a FIFO
            if path.suffix == ".safetensors":
                found: Any = load_file(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError,
            EOFError, KeyError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"cannot read weights from {path}: {reason}; give a .safetensors file, or a state dict "
            "that torch.save wrote"
        ) from error
    return _opened(found, path)


def fitting_weights(
    found: Mapping[str, Tensor], landmark: str, what: str, *, needed: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], str]:
    """Take off what stands before all names, such as `module.` or `backbone.`.

    Args:
        found: Tensors by their names.
        landmark: Name that one of them ends with, if they are of the right kind.
        what: The kind, for the message.
        needed: Names that look like a head's and are none.

    Returns:
        Those below the same prefix as the landmark, without it; and the prefix. What is left out
        is a head, or something else that no embedding takes.

    Raises:
        ValueError: If there is no landmark, or several, or something else is left out.
    """
    prefixes = [
        name.removesuffix(landmark)
        for name in found
        if name.endswith(landmark) and name.removesuffix(landmark)[-1:] in ("", ".")
    ]
    if not prefixes:
        raise ValueError(f"it holds no {landmark}, so it is no {what}")
    if len(prefixes) > 1:
        raise ValueError(f"it holds several: below {', '.join(sorted(map(repr, prefixes)))}")
    prefix = prefixes[0]
    inside = {
        name.removeprefix(prefix): value
        for name, value in found.items()
        if name.startswith(prefix)
        and (name.removeprefix(prefix) in needed or not is_beside(name.removeprefix(prefix)))
    }
    outside = (_without(name, prefix) for name in found if not name.startswith(prefix))
    refuse_left(name for name in outside if not is_beside(name))
    return inside, prefix


def refuse_left(names: Iterable[str]) -> None:
    """Refuse tensors that nothing takes.

    Raises:
        ValueError: If there are any; the message names three.
    """
    if left := sorted(names):
        more = f" and {len(left) - 3:,} more" if len(left) > 3 else ""
        raise ValueError(f"nothing takes {', '.join(left[:3])}{more}")


def is_beside(name: str) -> bool:
    """Whether a tensor is one that no embedding takes, such as a classification head's."""
    return name.startswith(_HEADS) or name.endswith(_BESIDE)


def _without(name: str, prefix: str) -> str:
    """Take as many words of a prefix off a name as they share: heads stand beside the backbone."""
    for word in prefix.split(".")[:-1]:
        if not name.startswith(f"{word}."):
            break
        name = name.removeprefix(f"{word}.")
    return name


def _opened(found: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401 -- as somebody left it
    """Find the tensors in the containers around them."""
    for _ in range(_DEEPEST):
        if not isinstance(found, Mapping):
            break
        if any(isinstance(value, Tensor) for value in found.values()):
            break
        inner = next((found[key] for key in _CONTAINERS if key in found), None)
        if inner is None:
            break
        found = inner
    tensors = found if isinstance(found, Mapping) else {}
    named = {
        name: value.float()
        for name, value in tensors.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()
    }
    if not named:
        raise ValueError(f"{path} holds no tensors by name, such as a state dict has")
    return named


def _of_folder(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return read_weights(folder / name)
    if not index.exists():
        raise FileNotFoundError(f"no model.safetensors or pytorch_model.bin in {folder}")
    parts = read_json(index, dict[str, Any], "an index of weights").get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(each, str) for each in parts.values()):
        raise ValueError(f"{index} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names a file elsewhere: {json.dumps(name)}")
        tensors |= read_weights(folder / name)
    return tensors
