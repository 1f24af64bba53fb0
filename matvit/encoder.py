"""What search needs of an encoder, whatever runs it: torch, or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from jaxtyping import Float32, UInt8
from numpy import ndarray

from matvit.config import MatViTConfig
from matvit.cost import check_submodel
from matvit.submodel import Granularity, Submodel

if TYPE_CHECKING:
    from matvit.preprocess import Preprocess

Precision = Literal["auto", "float32", "bfloat16"]

Memory = dict[Hashable, dict[tuple[int, ...], Any]]
"""Hidden states of the same images, by weights, and by the widths that made them."""


class Runtime(NamedTuple):
    """What runs an encoder, and where.

    Attributes:
        library: `"torch"` or `"onnxruntime"`.
        version: Of the library.
        device: `"cpu"` or `"cuda"`.
        place: The same for people: name of the GPU, or `"cpu, 2 threads"`.
    """

    library: str
    version: str
    device: str
    place: str

    @property
    def has_int8(self) -> bool:
        """Whether it can compute in 8 bits."""
        return self.library == "onnxruntime"


class Encoder(Protocol):
    """A whole encoder, that runs at any size, or a submodel extracted from one."""

    name: str
    config: MatViTConfig
    preprocess: Preprocess
    is_whole: bool

    @property
    def fingerprint(self) -> str:
        """Identity of the full encoder's weights."""

    @property
    def weights_fingerprint(self) -> str:
        """Identity of the weights that the smaller sizes run from."""

    @property
    def runtime(self) -> Runtime:
        """What runs it, and where."""

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Resolve what a caller wrote; None is the largest size this encoder has."""

    def weights_of(self, submodel: Submodel) -> Hashable:
        """Name the weights that a submodel runs from: hidden states are shared within them."""

    def number_format(self, precision: Precision = "auto", images: int | None = None) -> str:
        """Say in which numbers matrix products run, such as `"bfloat16"`.

        Args:
            precision: As for `embed`.
            images: How many are embedded together; None for many.

        Raises:
            ValueError: If the precision is unknown or cannot be had, or the encoder is in
                training mode, where its vectors would be random.
        """

    def embed_pixels(
        self,
        pixels: UInt8[ndarray, "batch height width 3"],
        submodels: list[Submodel],
        number_format: str,
        memory: Memory | None = None,
    ) -> Float32[ndarray, "submodels batch dim"]:
        """Embed one batch with some submodels of its own, which share what they can.

        Args:
            pixels: Images of the encoder's size.
            submodels: What runs.
            number_format: As `number_format` says.
            memory: Of earlier runs on the same images, to go on from; it is added to. An
                extracted submodel has nothing to go on with, and takes None alone.
        """


def resolve_submodel(
    config: MatViTConfig,
    spec: Submodel | Granularity | str | None,
    cut: Submodel | None = None,
    *,
    has_int8: bool = False,
) -> Submodel:
    """Read what a caller wrote as a submodel of an encoder; None is its largest size.

    Args:
        config: Architecture.
        spec: As written.
        cut: The one size that there is, of an extracted submodel.
        has_int8: Whether what runs the encoder can compute in 8 bits.

    Raises:
        ValueError: If it cannot be read, or is none of the encoder's.
    """
    depth, hidden_dim = config.depth, config.hidden_dim
    wanted = (
        Submodel.parse(spec, depth=depth, hidden_dim=hidden_dim) if isinstance(spec, str) else spec
    )
    if wanted is not None and wanted.int8 and not has_int8:
        raise ValueError(f"{wanted} needs ONNX Runtime; load the encoder with runtime onnx")
    if cut is not None:
        if wanted is not None and replace(wanted, int8=False) != cut:
            raise ValueError(
                f"this encoder is the extracted submodel {cut} and holds no {wanted}; "
                "use the full model for other sizes"
            )
        return wanted or cut
    if wanted is None:
        return Submodel.uniform(Granularity.XL, depth=depth, hidden_dim=hidden_dim)
    check_submodel(config, wanted)
    return wanted
