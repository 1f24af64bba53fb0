"""What a search found, as text, CSV, JSON or paths, as copies of the files, and as a page."""

from __future__ import annotations

import csv
import io
from enum import Enum
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import matvit
import retrieval
from app.gallery import Gallery
from app.output import one_line, readable, say, show, show_json

_COLUMNS = ("query", "rank", "id", "path", "score", "label", "submodel")


class Form(Enum):
    """How hits are printed."""

    TEXT = "text"
    PATHS = "--paths"
    CSV = "--csv"
    JSON = "--json"

    @classmethod
    def chosen(cls, *, paths: bool, csv: bool, json: bool) -> Form:
        """Return the form that was asked for.

        Raises:
            ValueError: If several were.
        """
        asked = {cls.PATHS: paths, cls.CSV: csv, cls.JSON: json}
        forms = [form for form, wanted in asked.items() if wanted]
        if len(forms) > 1:
            raise ValueError(f"choose one of {' and '.join(form.value for form in forms)}")
        return forms[0] if forms else cls.TEXT


class Results:
    """Prints answers as they come; copies what was found, and shows it on a page at the end.

    Args:
        retriever: Who was asked.
        form: How to print.
        min_score: Score below which a hit is none; None for no such cut-off.
        copy_to: Folder for copies of the hits, which must be empty or not be there.
        html: File of a page with the pictures.

    Attributes:
        failed: Hits whose file could not be had.

    Raises:
        FileExistsError: If there is something in the folder.
    """

    def __init__(
        self,
        retriever: retrieval.Retriever,
        form: Form,
        *,
        min_score: float | None = None,
        copy_to: Path | None = None,
        html: Path | None = None,
    ) -> None:
        self._index, self._form, self._min_score = retriever.index, form, min_score
        self._copy_to, self._html = copy_to, html
        self._gallery = Gallery(retriever.index, retriever.encoder.preprocess)
        self._answers = 0
        self.failed = 0
        if copy_to is not None and copy_to.exists() and any(copy_to.iterdir()):
            raise FileExistsError(f"{copy_to} is not empty; name another folder for the copies")

    def __enter__(self) -> Self:
        if self._form is Form.CSV:
            self._row(_COLUMNS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._html is not None:
            self._gallery.write(self._html, "What was found")
            say(f"Page: {self._html}")

    def add(self, answer: retrieval.Hits) -> None:
        """Print an answer, and keep what is needed of it for the end."""
        self._answers += 1
        hits = answer if self._min_score is None else answer.at_least(self._min_score)
        nothing = self._why_nothing(answer) if not hits else ""
        if self._form is Form.JSON:
            show_json(hits.to_dict())
        elif self._form is Form.TEXT:
            self._as_text(hits, nothing)
        else:
            self._for_programs(hits)
            if nothing:
                say(f"{hits.query or 'query'}: {nothing}")
        if self._copy_to is not None:
            self._copy(hits, self._copy_to)
        if self._html is not None:
            self._gallery.add_answer(_head(answer), hits, nothing)

    def _why_nothing(self, answer: retrieval.Hits) -> str:
        if not answer or self._min_score is None:
            return "nothing to find: no image passes the filter"
        return f"no good match: the best has {answer[0].score:.4f}, below {self._min_score:g}"

    def _as_text(self, hits: retrieval.Hits, nothing: str) -> None:
        show(_head(hits))
        for hit in hits:
            more = f"  (+{hit.twins:,} alike)" if hit.twins else ""
            show(f"{hit.rank:>4}  {hit.score:.4f}  {hit.path}{more}")
        if nothing:
            show(f"      {nothing}")

    def _for_programs(self, hits: retrieval.Hits) -> None:
        for hit in hits:
            if self._form is Form.CSV:
                self._row(
                    (hits.query or "", hit.rank, hit.id, hit.path, f"{hit.score:.6f}",
                     hit.label or "", hits.submodel)
                )  # fmt: skip
                continue
            try:
                show(str(self._index.file_of(self._row_of(hit))))
            except FileNotFoundError as error:
                self._fail(error)

    def _row(self, cells: tuple[object, ...]) -> None:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="").writerow([readable(str(cell)) for cell in cells])
        show(stream.getvalue())

    def _copy(self, hits: retrieval.Hits, folder: Path) -> None:
        """Copy the files of hits; a name says which query found it, and at which rank."""
        folder.mkdir(parents=True, exist_ok=True)
        for hit in hits:
            try:
                data = self._index.image_bytes(hit.id)
            except (OSError, ValueError) as error:
                self._fail(error)
                continue
            name = f"{self._answers:03}-{hit.rank:02}-{readable(PurePosixPath(hit.path).name)}"
            _write(folder / name, data)

    def _row_of(self, hit: retrieval.Hit) -> int:
        return int(self._index.ids.searchsorted(hit.id))

    def _fail(self, error: OSError | ValueError) -> None:
        say(f"error: {one_line(error)}")
        self.failed += 1


def _head(hits: retrieval.Hits) -> str:
    """Say in one line what was asked with, and what that cost."""
    way = " -> ".join(step.submodel for step in hits.steps) or hits.submodel
    how = f"{way}: {hits.macs / 1e9:.3f} GMACs"
    if not hits.encoded:
        how = "stored, not encoded: 0 GMACs"
    elif hits.encoded > 1:
        how += f" for {hits.encoded} images"
    times = f"{hits.encode_ms:.1f} ms + {hits.search_ms:.1f} ms"
    return f"{hits.query or 'query'}  [{how}, {times}]"


def _write(file: Path, data: bytes) -> None:
    matvit.write_atomically(file, lambda stream: stream.write(data))
