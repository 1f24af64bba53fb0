"""From what was asked for to a kind sized for the images there are, now and after every update."""

from __future__ import annotations

from typing import NamedTuple

from indexing.kinds.kind import (
    Kind,
    choose_kind,
    factory_kind,
    memory_bytes,
    named_kind,
    smallest_kind,
)
from indexing.request import AUTO, KindRequest


class Resolved(NamedTuple):
    """A kind, and why it is not what was asked for; None if it is."""

    kind: Kind
    note: str | None


def resolve(request: KindRequest, images: int, dim: int) -> Kind:
    """Size what was asked for.

    Raises:
        ValueError: If the kind is unknown, there are too few images for it, or it takes more
            memory than it may.
    """
    most = request.max_memory_bytes
    if request.factory is not None:
        kind = factory_kind(request.factory, images, dim)
    elif request.kind == AUTO:
        return choose_kind(images, dim, most, request.device)
    else:
        kind = named_kind(request.kind, images, dim, request.device)
    if most is not None and (needed := memory_bytes(kind, images, dim)) > most:
        raise ValueError(
            f"kind {kind.name} ({kind.factory}) needs {needed:,} bytes for {images:,} images, "
            f"more than the {most:,} it may take; allow more, or use another kind or auto"
        )
    return kind


def resolve_again(request: KindRequest, images: int, dim: int) -> Resolved:
    """Size what was asked for, or what comes nearest if there are too few or too many images now.

    An update is not refused for it: what is chosen instead is what `auto` would be within the
    same memory, or the smallest kind where nothing fits any more.
    """
    try:
        return Resolved(resolve(request, images, dim), None)
    except ValueError as error:
        reason = str(error)
    try:
        kind = choose_kind(images, dim, request.max_memory_bytes, request.device)
    except ValueError:
        kind = smallest_kind(images, dim, request.device)
    return Resolved(kind, f"{kind.name} instead of {request.name}: {reason}")
