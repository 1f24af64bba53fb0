"""What an interrupted tuning leaves to the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from matvit import MatViT, Submodel
from retrieval.tuning.record import read_checked, write_checked
from retrieval.tuning.trial import Score

_LOCK = "tuning.lock"
_SAVE_EVERY_S = 5.0


class Journal:
    """What was measured so far, kept in a file while tuning goes on.

    Args:
        path: The file.
        settings: Plain JSON values that change a score: what was measured with others is no use.
        model: Whose submodels are measured.
        bar: A tqdm bar, advanced by each.

    Attributes:
        known: What an interrupted run with the same settings measured.
        scores: All that is measured so far.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        model: MatViT,
        bar: Any,  # noqa: ANN401 -- tqdm has no useful type
    ) -> None:
        self._path, self._bar = path, bar
        self._key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._saved = monotonic()
        self.known = self._read(model)
        self.scores: Mapping[Submodel, Score] = self.known
        bar.update(len(self.known))

    def __enter__(self) -> None:
        return None

    def __exit__(self, error: object, *_: object) -> None:
        with suppress(OSError) if error else nullcontext():  # the first error is the one to tell
            self._save()

    def advance(self) -> None:
        """Count one more, and save now and then."""
        self._bar.update(1)
        if monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()

    def forget(self) -> None:
        """Remove the file: all is done."""
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        scores = {str(submodel): score for submodel, score in self.scores.items()}
        write_checked(self._path, msgspec.to_builtins(_Progress(key=self._key, scores=scores)))
        self._saved = monotonic()

    def _read(self, model: MatViT) -> dict[Submodel, Score]:
        """Read what an interrupted run with the same settings measured; else nothing."""
        with suppress(ValueError):  # not worth an error: it is measured again
            found = msgspec.convert(read_checked(self._path), _Progress)
            if found.key == self._key:
                return {model.submodel(name): score for name, score in found.scores.items()}
        return {}


class _Progress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was measured, and a hash of the settings that it depends on."""

    key: str
    scores: dict[str, Score]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Be the only one that tunes an index."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"{folder} is being tuned by another process; wait until it is done or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()
