"""Several processes, on one machine or more, that train one model as if they were one.

    torchrun --nproc-per-node 2 --no-python matvit train ...

Every process has all weights and draws the same order, submodels and augmentation from the same
seed; each computes its own micro-batches of every step's batch, the gradients are added up, and
all take the same step. The batch size of a recipe is that of all processes together, so the
result does not depend on their number, but for rounding (and, where processes outnumber the
micro-batches of a step, for what depends on these: stochastic depth, the neighbour term). Only
the first process writes files.

Gradients are added up explicitly, once per step and in a few large buckets, not by
`DistributedDataParallel`: that wraps `forward`, while a step here calls `vectors` and `classify`
of one model, several times before its gradients are complete; and it has to be told,
or to search the graph, for parameters without a gradient, such as the head in an aligning phase.
Which parameters have one depends on the step alone and so is the same everywhere. What is given
up is the overlap of the exchange with the backward pass: one exchange of a ViT-B's 350 MB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

_BUCKET = 32 * 2**20  # numbers
_TIMEOUT = timedelta(minutes=30)  # evaluation and checkpoints happen in one process only


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of how many processes this is.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        local_rank: Its number on this machine, and the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls) -> Processes:
        """Read what `torchrun` says in the environment; one process without it."""
        rank, count, local_rank = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        return cls(rank=rank, count=count, local_rank=local_rank)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the GPU of this process, or the CPU.

        Raises:
            ValueError: If there are more processes than GPUs.
        """
        if device.type != "cuda" or self.count == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local_rank + 1} on this machine, but it has "
                f"{torch.cuda.device_count()} GPUs; start one process per GPU"
            )
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connect the processes: NCCL between GPUs, Gloo between CPUs."""
        if self.count == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        yield
        # Not after an error: saying goodbye would wait for those who wait for this process.
        dist.barrier()
        dist.destroy_process_group()

    def agree(self, what: Mapping[str, object]) -> None:
        """Make sure that all processes were started with the same.

        Raises:
            ValueError: If something differs; the message says what.
        """
        if self.count == 1:
            return
        everywhere: list[Mapping[str, object]] = [{}] * self.count
        with self._lost_as_error():
            dist.all_gather_object(everywhere, what)
        for rank, theirs in enumerate(everywhere):
            for name, mine in what.items():
                if theirs[name] != mine:
                    raise ValueError(
                        f"process {self.rank} has {name} {mine!r}, process {rank} has "
                        f"{theirs[name]!r}; start all of them with the same"
                    )

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes.

        Raises:
            ConnectionError: If another process has gone.
        """
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with self._lost_as_error():
                dist.all_reduce(flat)
            parts = torch.split_with_sizes(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @contextmanager
    def _lost_as_error(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(
                f"process {self.rank} of {self.count} lost touch with the others, one of which "
                "must have failed; its own message says why. Resume from the last state"
            ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one type, in order, into runs that are worth one message each."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        numbers = sum(each.numel() for each in bucket)
        if bucket and (numbers + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
