"""One Vision Transformer, hundreds of encoders: nested models, submodels, cost and training."""

from typing import TYPE_CHECKING

from matvit.config import MatViTConfig
from matvit.cost import count_macs, count_params
from matvit.mix_n_match import mix_n_match, trained_sizes
from matvit.submodel import Granularity, Submodel

if TYPE_CHECKING:
    from matvit.extract import ExtractedViT
    from matvit.model import MatViT
    from matvit.preprocess import Preprocess

__all__ = [
    "ExtractedViT",
    "Granularity",
    "MatViT",
    "MatViTConfig",
    "Preprocess",
    "Submodel",
    "count_macs",
    "count_params",
    "mix_n_match",
    "trained_sizes",
]

_LAZY = {
    "ExtractedViT": "matvit.extract",
    "MatViT": "matvit.model",
    "Preprocess": "matvit.preprocess",
}


def __getattr__(name: str) -> object:
    """Import what needs torch only when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
