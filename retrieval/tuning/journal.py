"""What tuning keeps on disk: files in which damage is noticed, and what a run had measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from indexing import lock_file
from matvit import Encoder, Submodel, parse_json, read_file, write_atomically

_LOCK = "tuning.lock"
_SAVE_EVERY_S = 5.0
_VERSION = 1
_LARGEST = 1 << 24


class Score(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a submodel keeps of the full encoder's search.

    Attributes:
        distortion: Neighbour distortion; see `Trial`.
        overlap: Mean share of the full encoder's top k that it finds too; None if only embedded.
        hit_rate: Share of queries whose first hit has their label; None without labels or if only
            embedded.
    """

    distortion: float
    overlap: float | None = None
    hit_rate: float | None = None


class Journal:
    """What was measured so far, kept in a file for the run after an interrupted one.

    Args:
        path: The file.
        settings: Plain JSON values that change a score: what was measured with others is no use.
        model: Whose submodels are measured.
        told: Called with the number of those that are known, and with 1 for each more.

    Attributes:
        known: What an interrupted run with the same settings measured.
        scores: All that is measured so far.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        model: Encoder,
        told: Callable[[int], object],
    ) -> None:
        self._path, self._told = path, told
        self._key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._saved = monotonic()
        self.known = self._read(model)
        self.scores: Mapping[Submodel, Score] = self.known
        told(len(self.known))

    def __enter__(self) -> None:
        return None

    def __exit__(self, error: object, *_: object) -> None:
        with suppress(OSError) if error else nullcontext():  # the first error is the one to tell
            self._save()

    def advance(self) -> None:
        """Count one more, and save now and then."""
        self._told(1)
        if monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()

    def forget(self) -> None:
        """Remove the file: all is done."""
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        scores = {str(submodel): score for submodel, score in self.scores.items()}
        write_checked(self._path, msgspec.to_builtins(_Progress(key=self._key, scores=scores)))
        self._saved = monotonic()

    def _read(self, model: Encoder) -> dict[Submodel, Score]:
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
    with lock_file(folder / _LOCK, "tuned"):
        yield


class _Checked(msgspec.Struct, forbid_unknown_fields=True):
    """JSON in which damage is noticed."""

    format_version: int
    sha256: str
    content: dict[str, Any]


def write_checked(path: Path, values: dict[str, Any]) -> None:
    """Write JSON so that damage is noticed when it is read."""
    document = {"format_version": _VERSION, "sha256": _digest(values), "content": values}
    data = (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    write_atomically(path, lambda stream: stream.write(data))


def read_checked(path: Path) -> dict[str, Any] | None:
    """Read what `write_checked` wrote; None if there is no such file.

    Raises:
        ValueError: If it is damaged, or of another version.
    """
    try:
        data = read_file(path, max_bytes=_LARGEST).data
        found = parse_json(data, _Checked, "what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk or the machine: that says nothing of what is in the file
        raise damaged(path, str(error)) from error
    if found.format_version != _VERSION:
        raise ValueError(
            f"{path} has format version {found.format_version}, this program reads {_VERSION}; "
            "run `matvit tune` again"
        )
    if _digest(found.content) != found.sha256:
        raise damaged(path, "its content is not what was written")
    return found.content


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def damaged(path: Path, reason: str) -> ValueError:
    """Say that a file of tuning cannot be used, and what to do about it."""
    return ValueError(f"{path} is damaged: {reason}; remove it or run `matvit tune` again")
