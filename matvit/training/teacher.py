"""Learning from a trained network: what it says about several views of every image.

A teacher is asked once. Its vectors and class scores of a few seeded views of each image are kept
on disk, and every epoch of training shows the encoder one of these very views: teacher and
student see the same crop, and training costs no more than without a teacher.

References:
    Consistent views: Knowledge distillation, a good teacher is patient and consistent, section 3.
    https://arxiv.org/abs/2106.05237
    Teacher outputs stored with the seeds of the augmentation: TinyViT, section 3.1.
    https://arxiv.org/abs/2207.10666
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import normalize

from matvit.progress import progress_of
from matvit.training.augment import crop, random_crops
from matvit.training.data import UNLABELLED, LabelledPixels
from matvit.writing import naming

ANSWERS = "answers"
"""Folder, within that of a run, that keeps what a teacher said."""

_PCA_SAMPLE = 20_000


class Lesson(NamedTuple):
    """What a teacher says about the images of a batch, mixed as they are.

    Attributes:
        vectors: Of length one, in the dimensions of the encoder that is trained.
        shares: Probability of each of its classes; None if it knows none.
    """

    vectors: Float[Tensor, "batch dim"]
    shares: Float[Tensor, "batch classes"] | None

    def part(self, rows: slice) -> Lesson:
        """Return what it says about some of the images."""
        return Lesson(self.vectors[rows], None if self.shares is None else self.shares[rows])


class Said(NamedTuple):
    """What a teacher says about some images.

    Attributes:
        vectors: Of length one.
        scores: Logits of its classes; None if it knows none.
    """

    vectors: Float[Tensor, "images dim"]
    scores: Float[Tensor, "images classes"] | None


@dataclass(frozen=True)
class Teacher:
    """A trained network that an encoder learns from; see `matvit.training.teachers.open_teacher`.

    Attributes:
        name: What to call it.
        fingerprint: 16 hex digits that change with its weights and how it takes colours.
        img_size: Side of its input in pixels; images are enlarged or reduced to it.
        dim: Dimension of its vectors.
        classes: How many classes it tells apart; 0 if it knows none.
        device: Where it looks at images.
        look: Maps pixels on the scale 0..255, shape (images, 3, img_size, img_size), to what it
            says.
    """

    name: str
    fingerprint: str
    img_size: int
    dim: int
    classes: int
    device: torch.device
    look: Callable[[Float[Tensor, "images 3 side side"]], Said]


@dataclass(frozen=True)
class Answers:
    """What a teacher said about several views of each image of a set, mapped from a file.

    Attributes:
        said: float16, shape (views, images, dim + classes): unit vectors, then logits.
        dim: Dimension of its vectors.
        crops: The views, shape (views, images, 2, 3); see `matvit.training.augment.crop`.
        identity: Of teacher and views, for whoever resumes a run.
    """

    said: NDArray[np.float16]
    dim: int
    crops: Float[Tensor, "views images 2 3"]
    identity: Mapping[str, str]

    @property
    def classes(self) -> int:
        """How many classes the teacher tells apart; 0 if it knows none."""
        width: int = self.said.shape[-1]
        return width - self.dim

    def views(self, rows: Int[Tensor, " rows"], epoch: int) -> Int[Tensor, " rows"]:
        """Which view of each image an epoch shows: all in turn."""
        return (rows + epoch) % len(self.said)

    def of(self, rows: Int[Tensor, " rows"], views: Int[Tensor, " rows"]) -> Tensor:
        """Return what was said about one view of each of some images, as it is stored."""
        return torch.from_numpy(self.said[views.numpy(), rows.numpy()])

    def parts(self, said: Tensor) -> Said:
        """Take vectors and scores out of what is stored."""
        said = said.float()
        return Said(said[:, : self.dim], said[:, self.dim :] if self.classes else None)

    def projection(self, dim: int, whitening: float) -> Projection:
        """Return the map of the teacher's vectors to `dim` dimensions that keeps most of them.

        Principal components, each divided by its deviation to the power of `whitening`: 0 keeps
        cosines as they are, .5 evens out what few directions dominate. With no more than `dim`
        dimensions nothing is changed; missing ones are zeros.

        References:
            Keeping a teacher's cosines in fewer dimensions: CosPress.
            https://arxiv.org/abs/2411.15239
        """
        if self.dim <= dim:
            return Projection(torch.zeros(self.dim), torch.eye(self.dim, dim))
        sample = torch.from_numpy(self.said[0, self._spaced(_PCA_SAMPLE), : self.dim]).double()
        mean = sample.mean(dim=0)
        values, directions = torch.linalg.eigh((sample - mean).T @ (sample - mean) / len(sample))
        values, directions = values.flip(0)[:dim], directions.flip(1)[:, :dim]
        # An eigenvector's sign means nothing and may differ from machine to machine.
        directions = directions * directions.gather(0, directions.abs().argmax(0)[None]).sign()
        scale = (values / values[0]).clamp(min=1e-6).pow(-whitening / 2)
        return Projection(mean.float(), (directions * scale).float())

    def bank(self, count: int) -> Float[Tensor, "count dim"]:
        """Vectors of whole images, evenly spaced over the set."""
        rows = torch.from_numpy(self._spaced(count))
        return self.parts(self.of(rows, torch.zeros_like(rows))).vectors

    def _spaced(self, count: int) -> NDArray[np.int64]:
        images = self.said.shape[1]
        return np.linspace(0, images - 1, min(count, images)).astype(np.int64)


class Projection(NamedTuple):
    """A teacher's vectors in the dimensions of an encoder."""

    mean: Float[Tensor, " given"]
    matrix: Float[Tensor, "given dim"]

    def __call__(self, vectors: Float[Tensor, "images given"]) -> Float[Tensor, "images dim"]:
        """Return vectors of length one."""
        return normalize((vectors - self.mean) @ self.matrix, dim=-1)

    def to(self, device: torch.device) -> Projection:
        """Move it to a device."""
        return Projection(self.mean.to(device), self.matrix.to(device))


def ask(
    teacher: Teacher,
    data: LabelledPixels,
    folder: str | Path,
    *,
    views: int,
    min_area: float,
    batch_size: int = 128,
    progress: bool = False,
) -> Answers:
    """Ask a teacher about every view of every image, or read what it said before.

    What it has answered is not asked again: stopped, by whatever, it goes on where it was. Several
    processes that want the same answers wait for the one that asks.

    Args:
        teacher: Who is asked.
        data: The images.
        folder: Where the answers are kept, under a name that teacher, images and views decide;
            created if missing.
        views: Views of each image: the whole of it, then random crops, half of them mirrored.
        min_area: Smallest share of the image that a crop keeps.
        batch_size: Images at a time.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: If the teacher says something that is no finite number.
        OSError: If the disk is full.
    """
    whole = torch.eye(2, 3).repeat(len(data), 1, 1)
    others = [
        random_crops(len(data), min_area, Generator().manual_seed(view)) for view in range(1, views)
    ]
    identity = {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "img_size": str(teacher.img_size),
        "views": f"{views} of at least {min_area}",
    }
    images = replace(data, labels=np.zeros_like(data.labels), class_names=[UNLABELLED])
    key = hashlib.sha256(json.dumps([identity, images.fingerprint]).encode()).hexdigest()[:16]
    path = Path(folder) / f"{key}.f16"
    path.parent.mkdir(parents=True, exist_ok=True)
    width = teacher.dim + teacher.classes
    crops = torch.stack([whole, *others])
    with FileLock(f"{path}.lock"):
        _write(path, teacher, data, crops, 2 * width, batch_size, progress=progress)
    said = np.memmap(path, np.float16, "r", shape=(views, len(data), width))
    return Answers(said, teacher.dim, crops, identity)


def _write(
    path: Path,
    teacher: Teacher,
    data: LabelledPixels,
    crops: Float[Tensor, "views images 2 3"],
    row_bytes: int,
    batch_size: int,
    *,
    progress: bool,
) -> None:
    """Append to a file what is missing: a row for each image of a view, view after view."""
    total = crops.shape[0] * crops.shape[1]
    with naming(path), path.open("ab") as file:
        done = file.tell() // row_bytes
        file.truncate(done * row_bytes)  # a row that was cut off by a kill
        asking = f"asking {teacher.name}"
        with progress_of(asking, total, unit="views", done=done, shown=progress) as bar:
            while done < total:
                view, start = divmod(done, len(data))
                rows = slice(start, min(start + batch_size, len(data)))
                said = _look(teacher, data.pixels[rows], crops[view, rows])
                file.write(said.tobytes())
                file.flush()
                os.fsync(file.fileno())
                done += len(said)
                bar.update(len(said))


def _look(
    teacher: Teacher, pixels: NDArray[np.uint8], crops: Float[Tensor, "images 2 3"]
) -> NDArray[np.float16]:
    """Show a teacher some views."""
    images = torch.from_numpy(np.array(pixels)).to(teacher.device).permute(0, 3, 1, 2)
    said = teacher.look(crop(images, crops, teacher.img_size, "bicubic").clamp(0, 255))
    parts = [part for part in said if part is not None]
    row = torch.cat(parts, dim=1).float().cpu().numpy().astype(np.float16)
    if not np.isfinite(row).all():
        raise ValueError(
            f"teacher {teacher.name} says something that is no finite number; use other weights"
        )
    return row
