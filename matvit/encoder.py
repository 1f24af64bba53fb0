"""What search needs of an encoder, whatever runs it: torch, or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from jaxtyping import Float32, UInt8
from numpy import ndarray

from matvit.config import MatViTConfig
from matvit.submodel import Granularity, Submodel

if TYPE_CHECKING:
    from matvit.preprocess import Preprocess

Precision = Literal["auto", "float32", "bfloat16"]

Memory = dict[Hashable, dict[tuple[tuple[int, int], ...], Any]]
"""Hidden states of the same images, by weights, and by the blocks that made them."""


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
