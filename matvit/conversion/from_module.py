"""An image encoder that Python holds as an `nn.Module`, as a MatViT of the same vectors."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from matvit.conversion.from_huggingface import translated
from matvit.conversion.from_timm import from_timm
from matvit.model import MatViT
from matvit.preprocess import Preprocess

_AROUND = ("module", "_orig_mod")
"""What DataParallel and its like, and a compiled model, keep the model under."""

_INSIDE = ("backbone", "encoder", "model", "trunk", "visual", "net")
"""Where people keep the encoder in a model of their own."""


def from_module(module: nn.Module, *, preprocess: Preprocess | None = None) -> MatViT:
    """Make a MatViT of a model of timm or transformers, or of one that holds such an encoder.

    Args:
        module: The model; DDP, DataParallel, averaged weights (EMA) and `torch.compile` around it
            are taken off, and heads left behind.
        preprocess: How images become its input; None follows timm's `pretrained_cfg`, or is usual
            for the kind of encoder.

    Raises:
        ValueError: If there is no such encoder in it, or it cannot be represented; the message
            says why.
    """
    inner = module
    while (wrapped := _first(inner, _AROUND)) is not None:
        inner = wrapped
    if not _is_known(inner):
        inner = next((each for name in _INSIDE if (each := _child(inner, name))), inner)
    if _is_known(inner) and not isinstance(inner, VisionTransformer):
        settings: Any = inner.config
        weights = {name: value.float() for name, value in inner.state_dict().items()}
        try:
            model = translated(settings.to_dict(), weights, preprocess, name=type(inner).__name__)
        except ValueError as error:
            raise ValueError(f"{type(inner).__name__} cannot become a MatViT: {error}") from error
        return model.to(next(inner.parameters()).device)
    return from_timm(inner, preprocess=preprocess)


def _is_known(module: nn.Module) -> bool:
    """Whether it is timm's, or one of transformers, which carry their settings along."""
    return isinstance(module, VisionTransformer) or hasattr(
        getattr(module, "config", None), "model_type"
    )


def _first(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The only child of a module, if it has one of these names."""
    children = dict(module.named_children())
    name = next(iter(children), None)
    return children[name] if len(children) == 1 and name in names else None


def _child(module: nn.Module, name: str) -> nn.Module | None:
    """What a module keeps under a name, if it is an encoder."""
    found = dict(module.named_children()).get(name)
    return found if found is not None and _is_known(found) else None
