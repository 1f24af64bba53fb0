"""What is asked for: images new or stored, several together, some not; and what may answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL.Image import Image as Pixels

from indexing import IndexedImages, Where
from matvit import ImageLike

By = Literal["mean", "best"]

UNLIKE = 0.5
"""What the images count that answers should not be like, against those that they should."""


@dataclass(frozen=True)
class Stored:
    """An image of the index to ask with: its vector is there, so nothing is encoded.

    Attributes:
        id: Its number in the index.
    """

    id: int

    @classmethod
    def named(cls, index: IndexedImages, name: str) -> Stored:
        """Find an image by its name in the index.

        Raises:
            ValueError: If there is none of that name.
        """
        if (row := index.row_named(name)) is None:
            raise ValueError(f"{index.path} has no image {name!r}")
        return cls(int(index.ids[row]))


Image: TypeAlias = "ImageLike | Stored"


@dataclass(frozen=True, kw_only=True)
class Together:
    """Several images that ask one question.

    Attributes:
        like: What answers should be like, at least one.
        unlike: What they should not be like.
        by: `"mean"`: the mean of the unit vectors of `like`, less half of that of `unlike`, asks
            as one vector. `"best"`: an answer has its cosine with the image of `like` that is
            nearest to it; one that is nearer still to an image of `unlike` is left out.

    Raises:
        ValueError: If `like` is empty, or `by` is another word.
    """

    like: tuple[Image, ...]
    unlike: tuple[Image, ...] = ()
    by: By = "mean"

    def __post_init__(self) -> None:
        if not self.like:
            raise ValueError("a question needs at least one image that answers should be like")
        if self.by not in ("mean", "best"):
            raise ValueError(f"images are put together by mean or by best, not by {self.by!r}")

    @property
    def images(self) -> tuple[Image, ...]:
        """All images that are asked with."""
        return (*self.like, *self.unlike)


Asked: TypeAlias = "Image | Together"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What may answer, however similar it is.

    Attributes:
        where: A filter on the images of the index.
        exclude_self: Leave out the images asked with, and every copy of theirs, byte for byte.
        leave_out: Ids of images that do not answer.
        collapse: Cosine of stored vectors from which on two hits are taken for the same picture:
            only the better one is shown. None to show all.

    Raises:
        ValueError: If `collapse` is not within -1..1.
    """

    where: Where = Where()
    exclude_self: bool = False
    leave_out: tuple[int, ...] = ()
    collapse: float | None = None

    def __post_init__(self) -> None:
        if self.collapse is not None and not -1 <= self.collapse <= 1:
            raise ValueError(f"collapse must be a cosine within -1..1, got {self.collapse}")


class Question(NamedTuple):
    """A question as vectors, of unit length.

    Attributes:
        like: What answers should be like, at least one.
        unlike: What they should not be like.
        by: See `Together`.
    """

    like: Float32[ndarray, "likes dim"]
    unlike: Float32[ndarray, "unlikes dim"]
    by: By

    @property
    def vector(self) -> Float32[ndarray, " dim"]:
        """The one vector that asks by mean.

        Raises:
            ValueError: If nothing is left of it.
        """
        if len(self.like) == 1 and not len(self.unlike):
            return np.asarray(self.like[0])
        wanted = _units(self.like).mean(axis=0)
        if len(self.unlike):
            wanted = wanted - UNLIKE * _units(self.unlike).mean(axis=0)
        if np.linalg.norm(wanted) < 1e-6:
            raise ValueError("these images cancel each other out; ask by best, or with others")
        return np.asarray(wanted, dtype=np.float32)


def together(asked: Asked) -> Together:
    """Take any question for one of several images."""
    return asked if isinstance(asked, Together) else Together(like=(asked,))


def digest_of(image: ImageLike) -> str | None:
    """SHA-256 of the file of an image; None of one that has no file.

    Raises:
        FileNotFoundError: If there is no file at a path.
    """
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise FileNotFoundError(f"no such image: {image}")
        with Path(image).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, (np.ndarray, Pixels)):
        return None
    begin = image.tell()
    digest = hashlib.sha256(image.read()).hexdigest()
    image.seek(begin)
    return digest


def named(question: Together, names: Sequence[str | None]) -> str | None:
    """Write a question as people read it: `a.jpg + b.jpg - c.jpg`.

    Args:
        question: The question.
        names: Of its images, in their order.
    """
    if len(names) == 1:
        return names[0]
    said = [name or f"image {number}" for number, name in enumerate(names, start=1)]
    likes = len(question.like)
    return " - ".join([" + ".join(said[:likes]), *said[likes:]])


def _units(vectors: Float32[ndarray, "images dim"]) -> ndarray:
    exact = vectors.astype(np.float64)
    return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True))
