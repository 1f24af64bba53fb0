"""`matvit evaluate`: recall against compute, and where sizes disagree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import indexing
import retrieval
from app.gallery import Gallery
from app.options import (
    AskedArgument,
    Device,
    DeviceOption,
    EncoderOption,
    HitsOption,
    JsonOption,
    bad_usage,
    open_retriever,
    parse_sizes,
)
from app.output import exit_with_failures, say, show, show_frontier, show_json, show_row

_WORST, _SHOWN, _CLASSES = 8, 6, 10
_OTHERS = ("queries", "hit_rate@1", "recall@", "map@r", "overlap@", "retained_hit_rate@1")


def evaluate(
    index: AskedArgument,
    queries: Annotated[str, typer.Option(help="Folder of query images, Parquet or tar files.")],
    submodels: Annotated[
        str,
        typer.Option(
            help="Comma-separated; `mix` adds a spread of Mix'n'Match ones, `S~` merges tokens."
        ),
    ] = "S,M,L,XL",
    k: HitsOption = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, JSON and plot.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one page: table, plot, the worst queries."),
    ] = None,
    disagreements: Annotated[
        bool,
        typer.Option(
            "--disagreements", help="List the queries instead, by what a size loses against full."
        ),
    ] = False,
    encoder: EncoderOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Compare recall against compute for several encoder sizes."""
    retriever = open_retriever(index, encoder, device)
    try:
        sizes = parse_sizes(submodels, retriever.encoder.config)
    except ValueError as error:
        bad_usage(error)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # before an hour of work that it has no place for
    corpus = indexing.Corpus.open(queries)
    found = retrieval.evaluate_queries(retriever, corpus, sizes, k=k, progress=True)
    if disagreements:
        _show_disagreements(found, as_json=as_json)
    elif as_json:
        for point in found.frontier:
            show_json({**point.to_dict(), **_without_twins(found, point.submodel)})
    else:
        _show_tables(found)
    if out is not None:
        retrieval.write_report(found.frontier, out)
        say(f"Report: {out}/frontier.png, report.csv, report.json")
    if html is not None:
        _write_page(retriever, corpus, found, html)
        say(f"Page: {html}")
    exit_with_failures(len(found.failures))


def _show_tables(found: retrieval.Evaluation) -> None:
    show_frontier(found.frontier, as_json=False)
    if found.without_twins is not None:
        show(_about_twins(found))
        show(*retrieval.format_table(found.without_twins).split("\n"))
    elif found.twins.any():
        show("Every query has a near-duplicate in the index: the figures say little.")


def _about_twins(found: retrieval.Evaluation) -> str:
    return (
        f"{found.twins.sum():,} of {len(found.twins):,} queries have a near-duplicate in the "
        f"index (cosine {indexing.NEARLY_SAME:g} or above); without them:"
    )


def _without_twins(found: retrieval.Evaluation, submodel: str) -> dict[str, Any]:
    """What a size finds without queries that have a twin, as an addition to its JSON."""
    if found.without_twins is None:
        return {}
    values = found.without_twins.point_of(submodel).to_dict()
    return {"without_twins": {name: values[name] for name in values if name.startswith(_OTHERS)}}


def _show_disagreements(found: retrieval.Evaluation, *, as_json: bool) -> None:
    """Print a row for every query and smaller size: size, query, class, what it loses, overlap."""
    for submodel in found.smaller:
        for each in found.disagreements(submodel):
            if as_json:
                show_json(
                    {
                        "submodel": submodel,
                        "query": each.path,
                        "label": each.label,
                        "metric": found.metric,
                        "full": each.full,
                        "reached": each.reached,
                        "lost": each.lost,
                        "overlap": each.overlap if np.isfinite(each.overlap) else None,
                    }
                )
            else:
                numbers = f"{each.lost:+.4f}", f"{each.overlap:.4f}"
                show_row((submodel, *numbers, each.label or "", each.path))


def _write_page(
    retriever: retrieval.Retriever,
    queries: indexing.Corpus,
    found: retrieval.Evaluation,
    file: Path,
) -> None:
    """Write the table, the plot, the worst queries of each size, and what could not be read."""
    page = Gallery(retriever.index, retriever.encoder.preprocess)
    conditions = found.frontier.conditions
    said = "" if conditions is None else retrieval.format_conditions(conditions)
    page.add_text(said)
    page.add_table(retrieval.table_rows(found.frontier))
    if found.without_twins is not None:
        page.add_text(_about_twins(found))
        page.add_table(retrieval.table_rows(found.without_twins))
    page.add_drawing(retrieval.draw(found.frontier, "svg", caption=said))
    for submodel in found.smaller:
        _add_worst(page, retriever.index, queries, found, submodel)
    if found.failures:
        page.add_text("What could not be read", heading=True)
        rows = [("query", "error", "reason")]
        page.add_table(rows + [(each.path, each.error, each.message) for each in found.failures])
    page.write(file, "Recall against compute")


def _add_worst(
    page: Gallery,
    index: indexing.IndexedImages,
    queries: indexing.Corpus,
    found: retrieval.Evaluation,
    submodel: str,
) -> None:
    """Show the queries that a size loses most on, its hits beside the full encoder's."""
    worst = [each for each in found.disagreements(submodel) if each.lost > 0][:_WORST]
    page.add_text(f"Where {submodel} loses most", heading=True)
    if not worst:
        page.add_text(f"{submodel} loses nothing against {found.full}.")
        return
    if classes := [each for each in found.by_class(submodel) if each.lost > 0][:_CLASSES]:
        cells = [(each.label, f"{each.queries:,}", f"{each.lost:.4f}") for each in classes]
        page.add_table([("class", "queries", f"{found.metric} lost"), *cells])
    for each in worst:
        place = int(np.searchsorted(queries.positions, found.records[each.query].position))
        label = f", class {each.label}" if each.label is not None else ""
        page.add_text(f"{each.path}{label}: {found.metric} {each.full:.3f} -> {each.reached:.3f}")
        page.add_row([page.picture(queries.read(place), "the query", each.path)])
        for size in (found.full, submodel):
            page.add_row(_hits(page, index, found, each, size))


def _hits(
    page: Gallery,
    index: indexing.IndexedImages,
    found: retrieval.Evaluation,
    asked: retrieval.Disagreement,
    submodel: str,
) -> Iterator[str]:
    names = index.class_names
    for rank, row in enumerate(found.rows[submodel][asked.query][:_SHOWN].tolist(), start=1):
        if row < 0:
            return
        label = names[index.labels[row]] if names and index.labels[row] >= 0 else None
        right = None if None in (label, asked.label) else label == asked.label
        yield page.figure(
            int(index.ids[row]), f"{submodel} \u00b7 {rank}", index.path_of(row), verdict=right
        )
