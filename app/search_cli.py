"""`matvit search`: asking an index with images, in all the ways that people ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from PIL import Image

import indexing
import retrieval
from app.options import (
    AskedArgument,
    Device,
    DeviceOption,
    EncoderOption,
    HitsOption,
    JsonOption,
    bad_usage,
    open_retriever,
    way_to_ask,
)
from app.output import exit_with_failures, one_line, say
from app.queries import Query, all_queries, read_queries
from app.results import Form, Results

_Globs = list[str] | None


def search(
    index: AskedArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Images to ask with: files, folders, - for a list on stdin, or indexed images by "
            "name or as id:7, which need no encoding.",
        ),
    ],
    submodel: Annotated[
        str | None,
        typer.Option(
            help="S, M, L, XL, per block as in 4xS,2xXL; S~ merges tokens; or auto: as large as "
            "needed [default: XL]."
        ),
    ] = None,
    k: HitsOption = 10,
    together: Annotated[
        bool, typer.Option("--together", help="All images ask one question.")
    ] = False,
    unlike: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="IMAGE", help="What it is not like; may be repeated."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="How several images ask: by their mean, or by the best: whichever is nearest."
        ),
    ] = "mean",
    inside: Annotated[
        _Globs,
        typer.Option("--in", metavar="GLOB", help="Only what it names; may be repeated."),
    ] = None,
    exclude: Annotated[
        _Globs,
        typer.Option(metavar="GLOB", help="Not what it names, as 'old/**'; may be repeated."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this class; may be repeated.")
    ] = None,
    newer: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only files changed since: 2026-01-31, or 30d."),
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only files changed before.")
    ] = None,
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave out the images asked with.")
    ] = False,
    collapse: Annotated[
        float | None,
        typer.Option(metavar="COSINE", help="Show hits as similar as this once, such as .98."),
    ] = None,
    min_score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="Only hits with this score on the full encoder's scale; auto: what tune proposes.",
        ),
    ] = None,
    max_gmacs: Annotated[
        float | None, typer.Option(help="Instead of a submodel: most compute per query.")
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="Instead of a submodel: most time to encode a query here.")
    ] = None,
    min_recall: Annotated[
        float | None, typer.Option(help="Instead of a submodel: least recall, 0 to 1.")
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Scores on the full encoder's scale.")
    ] = False,
    encoder: EncoderOption = None,
    device: DeviceOption = Device.AUTO,
    as_paths: Annotated[
        bool, typer.Option("--paths", help="Print the files of the hits, one a line.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table as CSV.")] = False,
    as_json: JsonOption = False,
    copy_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy the hits there.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures, too.")
    ] = None,
) -> None:
    """Find the images most similar to each query, encoded by a submodel of your choice.

    A budget, or auto, chooses among the submodels that `matvit tune INDEX` measured.
    """
    try:
        form = Form.chosen(paths=as_paths, csv=as_csv, json=as_json)
        if by not in ("mean", "best"):
            raise ValueError(f"images are put together by mean or by best, not by {by!r}")
        wish = retrieval.Wish(
            where=indexing.Where(
                inside=tuple(inside or ()),
                outside=tuple(exclude or ()),
                labels=tuple(label or ()),
                newer=_time(newer),
                older=_time(older),
            ),
            exclude_self=exclude_self,
            collapse=collapse,
        )
        cut = _score(min_score)
    except ValueError as error:
        bad_usage(error)
    retriever = open_retriever(index, encoder, device)
    budget = {"max_gmacs": max_gmacs, "max_ms": max_ms, "min_recall": min_recall}
    ask = way_to_ask(retriever, submodel, budget, calibrated=calibrated or cut is not None)
    if cut == "auto":
        cut = proposed_cut(retriever)
    questions = Questions(
        retriever.index, images, tuple(unlike or ()), cast("Literal['mean', 'best']", by), together
    )
    failed = answered = 0
    warm = False
    with Results(retriever, form, min_score=cut, copy_to=copy_to, html=html) as results:
        for question in questions:
            try:
                if isinstance(question, Exception):
                    raise question
                if not warm and not isinstance(question, retrieval.Stored):
                    # The first search allocates memory and loads kernels.
                    ask(Image.new("RGB", (64, 64)), k=1)
                    warm = True
                results.add(ask(question, k=k, wish=wish))
                answered += 1
            except (OSError, ValueError) as error:
                if questions.is_one:
                    raise
                say(f"error: {one_line(error)}")
                failed += 1
        failed += results.failed
        if not answered:
            raise ValueError("none of the queries could be answered" if failed else "no queries")
    exit_with_failures(failed)


@dataclass(frozen=True)
class Questions:
    """What is asked, one question after the other; an error in place of each that cannot be.

    Attributes:
        index: Who is asked.
        like: Words that name images, as typed.
        unlike: The same of what answers should not be like.
        by: How several images ask.
        together: Whether all of `like` ask one question.
    """

    index: indexing.IndexedImages
    like: list[str]
    unlike: tuple[str, ...]
    by: Literal["mean", "best"]
    together: bool

    @property
    def is_one(self) -> bool:
        """Whether there is only one question, so that its error is the end."""
        return self.together or (
            len(self.like) == 1 and self.like[0] != "-" and not Path(self.like[0]).is_dir()
        )

    def __iter__(self) -> Iterator[retrieval.Together | Query | OSError | ValueError]:
        unlike = all_queries(self.unlike, self.index)
        if self.together:
            like = all_queries(self.like, self.index)
            yield retrieval.Together(like=like, unlike=unlike, by=self.by)
            return
        for query in read_queries(self.like, self.index):
            if isinstance(query, Exception) or not unlike:
                yield query
            else:
                yield retrieval.Together(like=(query,), unlike=unlike, by=self.by)


def proposed_cut(retriever: retrieval.Retriever) -> float:
    """Return the cut-off that tuning proposes.

    Raises:
        ValueError: If it proposes none.
    """
    found = retrieval.Tuning.of(retriever.index, retriever.encoder).cutoff
    if found is None:
        raise ValueError(
            f"tuning {retriever.index.path} proposes no cut-off; run `matvit tune` again, or name "
            "a score"
        )
    return found.min_score


def _time(text: str | None) -> datetime | None:
    return None if text is None else indexing.parse_time(text)


def _score(text: str | None) -> float | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        score = float(text)
    except ValueError:
        score = 2.0
    if not -1 <= score <= 1:
        raise ValueError(f"a score is a cosine within -1..1, or auto; got {text!r}")
    return score
