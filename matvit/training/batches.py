"""The images of every training step, a function of seed and step alone.

Threads fetch the pixels of the next steps while the device works on this one; on a GPU they also
copy them there, from pinned memory and beside the computation. Nothing random happens in them, so
neither their number nor their timing can change a result.
"""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize, one_hot

from matvit.torch_runtime import normalize_pixels
from matvit.training.augment import augment, mix_images
from matvit.training.data import LabelledPixels
from matvit.training.schedule import Recipe, Schedule
from matvit.training.teacher import Answers, Lesson

_ALONE = (0, 1)


class Batches:
    """Shuffled, augmented, normalised batches.

    Args:
        recipe: Decides batch size and augmentation.
        data: Decoded images.
        seed: Decides order and augmentation.
        device: Where images are augmented and returned.
        workers: Threads that fetch pixels ahead, each a step; 0 fetches when asked.
        process: Number of this process and how many there are; each returns its own part of
            every batch.
        answers: What a teacher said about the images, for a recipe that distils.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: LabelledPixels,
        seed: int,
        device: torch.device,
        *,
        workers: int = 1,
        process: tuple[int, int] = _ALONE,
        answers: Answers | None = None,
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        self.schedule = Schedule(recipe, len(data))
        self._rank, self._processes = process
        self._classes = len(data.class_names)
        self._preprocess = recipe.preprocess()
        self._pixels = np.asarray(data.pixels)
        self._labels = torch.from_numpy(data.labels)
        self._order = lru_cache(maxsize=2)(self._shuffle)
        self._answers = answers
        if answers is not None:
            dim = recipe.model.embed_dim
            self.projection = answers.projection(dim, recipe.whitening).to(device)
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ahead: dict[int, Future[_Fetched]] = {}
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.micro_batches(0)  # fail now rather than in a thread

    def img_size(self, step: int) -> int:
        """Return the side of the input in a step, in pixels."""
        phase = self.schedule.phase(step)
        if not phase.resolutions:
            return phase.img_size
        sides, shares = zip(*phase.resolutions, strict=True)
        rng = random.Random(derive_seed(self.seed, step, 6))  # noqa: S311 -- no secret
        side: int = rng.choices(sides, shares)[0]
        return side

    def load(self, step: int, img_size: int) -> Batch:
        """Return what is learned from in a step; of several processes, each gets its own part."""
        return self.change(step, self.fetch(step), img_size)

    def fetch(self, step: int) -> list[Tensor]:
        """Return the pixels of a step as they are stored, and have the next steps fetched.

        Where a step distils, the view of each image and what the teacher said of it follow; the
        view is left out if it was the only one.
        """
        if self._pool is None:
            return self._read(step).wait()
        last = min(step + self._workers, self.schedule.total_steps - 1)
        wanted = range(step, max(step, last) + 1)
        self._ahead = {
            each: self._ahead.get(each) or self._pool.submit(self._read, each) for each in wanted
        }
        return self._ahead.pop(step).result().wait()

    def change(self, step: int, fetched: list[Tensor], img_size: int) -> Batch:
        """Augment, mix and normalise the pixels of a step; see `load`."""
        part = self._part(step)
        pixels, *taught = fetched
        said = taught[-1] if taught else None
        crops = taught[0] if len(taught) > 1 else None
        randomness = Generator().manual_seed(derive_seed(self.seed, step, 3))
        images = augment(
            pixels.permute(0, 3, 1, 2),
            img_size,
            min_area=self.recipe.min_area,
            jitter=self.recipe.jitter,
            grayscale=self.recipe.grayscale,
            generator=randomness,
            part=(part.start, self.schedule.batch_size),
            crops=crops,
        )
        images, mix = mix_images(
            images, mixup=self.recipe.mixup, cutmix=self.recipe.cutmix, generator=randomness
        )
        labels = self._labels[self._rows(step)[part]].to(self.device)
        lesson = None
        if said is not None:
            assert self._answers is not None
            vectors, scores = self._answers.parts(said)
            lesson = Lesson(
                normalize(mix(self.projection(vectors)), dim=-1),
                None if scores is None else mix(scores.softmax(dim=-1)),
            )
        return Batch(
            normalize_pixels(images, self._preprocess),
            mix(one_hot(labels, self._classes).float()),
            lesson,
        )

    def micro_batches(self, step: int) -> list[range]:
        """Places, in the whole batch, of the images of each forward pass of this process.

        Every process gets whole micro-batches, the very ones that a single process would take,
        if there are enough of them; else they are made smaller. Mixed images come in pairs, so
        with several processes micro-batches are even.

        Raises:
            ValueError: If there are more processes than pairs of images.
        """
        batch, phase = self.schedule.batch_size, self.schedule.phase(step)
        # A smaller input needs less memory, in proportion to its patches.
        size = max(1, phase.micro_batch * phase.img_size**2 // self.img_size(step) ** 2)
        if self._processes > 1:
            size = min(size, -(-batch // self._processes))
            size += size % 2
        parts = [range(start, min(start + size, batch)) for start in range(0, batch, size)]
        if len(parts) < self._processes:
            raise ValueError(
                f"a batch of {batch} images makes {len(parts)} micro-batches of {size}, too few "
                f"for {self._processes} processes; start fewer"
            )
        first, last = (
            len(parts) * rank // self._processes for rank in (self._rank, self._rank + 1)
        )
        return parts[first:last]

    def _part(self, step: int) -> slice:
        """What this process has of a batch."""
        mine = self.micro_batches(step)
        return slice(mine[0].start, mine[-1].stop)

    def _rows(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.schedule.steps_per_epoch)
        return self._order(epoch)[position * self.schedule.batch_size :][: self.schedule.batch_size]

    def _shuffle(self, epoch: int) -> Tensor:
        shuffle = Generator().manual_seed(derive_seed(self.seed, epoch, 2))
        return torch.randperm(len(self._labels), generator=shuffle)

    def _read(self, step: int) -> _Fetched:
        """Copy what a step needs out of the set and, on a GPU, to the device."""
        rows = self._rows(step)[self._part(step)]
        tensors = [torch.from_numpy(np.take(self._pixels, rows, axis=0))]  # releases the GIL
        if self.schedule.phase(step).objective == "distill":
            assert self._answers is not None
            views = self._answers.views(rows, step // self.schedule.steps_per_epoch)
            if self.recipe.views > 1:
                tensors.append(self._answers.crops[views, rows])
            tensors.append(self._answers.of(rows, views))
        if self._copying is None:
            return _Fetched([tensor.to(self.device) for tensor in tensors], None)
        with torch.cuda.stream(self._copying):
            moved = [each.pin_memory().to(self.device, non_blocking=True) for each in tensors]
            return _Fetched(moved, self._copying.record_event())


class Batch(NamedTuple):
    """What is learned from in a step, or in a part of it.

    Attributes:
        images: Normalised, shape (batch, 3, img_size, img_size).
        labels: Share of each class in them, shape (batch, classes).
        lesson: What the teacher says about them, where one is listened to.
    """

    images: Tensor
    labels: Tensor
    lesson: Lesson | None

    def part(self, rows: slice) -> Batch:
        """Return some of the images."""
        lesson = self.lesson and self.lesson.part(rows)
        return Batch(self.images[rows], self.labels[rows], lesson)


class _Fetched(NamedTuple):
    """Tensors on the device, or on their way to it."""

    tensors: list[Tensor]
    copied: torch.cuda.Event | None

    def wait(self) -> list[Tensor]:
        """Return the tensors; what is computed with them from here on waits for the copy."""
        if self.copied is not None:
            computing = torch.cuda.current_stream(self.tensors[0].device)
            computing.wait_event(self.copied)
            for tensor in self.tensors:
                tensor.record_stream(computing)
        return self.tensors


def derive_seed(seed: int, count: int, purpose: int) -> int:
    """Derive independent seeds for every step and purpose."""
    return (seed * 1_000_003 + count) * 8 + purpose
