"""`matvit index duplicates`: what is there more than once, and which of it to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import indexing
from app.gallery import Gallery
from app.options import IndexArgument, JsonOption
from app.output import exit_with_failures, one_line, say, show, show_json
from matvit import Preprocess

_SIDE = 160


def index_duplicates(
    index: IndexArgument,
    above: Annotated[
        float, typer.Option(metavar="COSINE", help="From which on two images are the same.")
    ] = 0.98,
    as_paths: Annotated[
        bool, typer.Option("--paths", help="Print the files of all but the one to keep.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find images that are nearly the same, in groups with the one to keep; nothing is removed."""
    opened = indexing.ImageIndex.open(index, device="auto")
    groups = indexing.find_duplicates(opened, above, progress=True)
    failed = 0
    for number, group in enumerate(groups, start=1):
        if as_json:
            show_json(_as_json(opened, group))
        elif as_paths:
            failed += _show_paths(opened, group)
        else:
            _show_group(opened, number, group)
    spare = sum(_facts(opened, row)["bytes"] for group in groups for row in group.copies)
    copies = sum(len(group.copies) for group in groups)
    say(
        f"{len(groups):,} groups at {above:g} or above; {copies:,} of {len(opened):,} images, "
        f"{spare:,} bytes, are there once more."
    )
    if html is not None:
        _write_page(opened, groups, html)
        say(f"Page: {html}")
    exit_with_failures(failed)


def _show_group(index: indexing.ImageIndex, number: int, group: indexing.Duplicates) -> None:
    show(
        f"group {number}: {1 + len(group.copies):,} images", f"  keep    {_line(index, group.kept)}"
    )
    for row, score in zip(group.copies, group.scores, strict=True):
        show(f"  {score:.4f}  {_line(index, row)}")


def _show_paths(index: indexing.ImageIndex, group: indexing.Duplicates) -> int:
    """Print the files of the copies; return how many are gone."""
    gone = 0
    for row in group.copies:
        try:
            show(str(index.file_of(row)))
        except FileNotFoundError as error:
            say(f"error: {one_line(error)}")
            gone += 1
    return gone


def _as_json(index: indexing.ImageIndex, group: indexing.Duplicates) -> dict[str, Any]:
    copies = [
        {**_facts(index, row), "score": score}
        for row, score in zip(group.copies, group.scores, strict=True)
    ]
    return {"keep": _facts(index, group.kept), "copies": copies}


def _facts(index: indexing.ImageIndex, row: int) -> dict[str, Any]:
    known = index.metadata.slice(row, 1).select(["id", "path", "width", "height", "bytes"])
    facts: dict[str, Any] = known.to_pylist()[0]
    return facts


def _line(index: indexing.ImageIndex, row: int) -> str:
    facts = _facts(index, row)
    return f"{facts['path']}  ({facts['width']} x {facts['height']}, {facts['bytes']:,} bytes)"


def _write_page(index: indexing.ImageIndex, groups: list[indexing.Duplicates], file: Path) -> None:
    page = Gallery(index, Preprocess(img_size=_SIDE))
    for number, group in enumerate(groups, start=1):
        page.add_text(f"Group {number}", heading=True)
        scores = [f"{score:.4f}" for score in group.scores]
        rows = [(group.kept, "keep"), *zip(group.copies, scores, strict=True)]
        page.add_row(
            page.figure(
                int(index.ids[row]), said, _line(index, row), verdict=said == "keep" or None
            )
            for row, said in rows
        )
    if not groups:
        page.add_text("No two images are nearly the same.")
    page.write(file, "Near-duplicates")
