"""`matvit tune`: which submodels an index is worth asking with."""

from __future__ import annotations

from typing import Annotated

import typer

import indexing
import retrieval
from app.options import (
    Device,
    DeviceOption,
    EncoderOption,
    HitsOption,
    IndexArgument,
    JsonOption,
    SeedOption,
    open_retriever,
)
from app.output import exit_with_failures, show, show_frontier, show_json, warn_of_disorder


def tune(
    index: IndexArgument,
    queries: Annotated[
        str | None,
        typer.Option(help="Images like those to be asked with [default: altered ones of INDEX]."),
    ] = None,
    size: Annotated[int, typer.Option(help="Queries to measure with.")] = 2000,
    k: HitsOption = 10,
    target: Annotated[
        float | None,
        typer.Option(help="Recall of the recommended submodel [default: 0.95, 0.8 unlabelled]."),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="First hits `auto` may lose [default: 0.02, 0.1 unlabelled]."),
    ] = None,
    certainty: Annotated[float, typer.Option(help="Of that bound.")] = 0.9,
    max_false_accepts: Annotated[
        float,
        typer.Option(help="Share of queries that the proposed --min-score may show a wrong image."),
    ] = 0.05,
    seed: SeedOption = 0,
    encoder: EncoderOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Measure which submodels keep the most retrieval on your own images, and remember it."""
    retriever = open_retriever(index, encoder, device)
    tuning = retrieval.tune(
        retriever, None if queries is None else indexing.Corpus.open(queries),
        size=size, k=k, target=target, max_loss=max_loss,
        certainty=certainty, seed=seed, max_false_accepts=max_false_accepts, progress=True,
    )  # fmt: skip
    if as_json:
        show_json(tuning.to_dict())
        warn_of_disorder(tuning.frontier)
    else:
        show_frontier(tuning.frontier, as_json=False, recommended=tuning.recommended.submodel)
        show(tuning.summary, describe_auto(tuning), describe_cutoff(tuning))
    unreadable = tuning.frontier.conditions.unreadable if tuning.frontier.conditions else 0
    exit_with_failures(unreadable)


def describe_cutoff(tuning: retrieval.Tuning) -> str:
    """Say in one line which score to ask of a hit."""
    if tuning.cutoff is None:
        return "cut-off: none is proposed; queries need labels, or to be images of the index"
    return tuning.cutoff.describe()


def describe_auto(tuning: retrieval.Tuning) -> str:
    """Say in one line what the per-query choice does, costs and keeps."""
    found = tuning.escalation
    if found is None:
        return "auto: no per-query choice was found that costs less than the full encoder"
    if not found.goes_on:
        return f"auto: {found.ladder[0]} alone keeps what was asked for, so no query goes on"
    right = "first hits of the query's label" if found.uses_labels else "the full one's first hits"
    change = "loses" if found.reported.lost >= 0 else "gains"
    return (
        f"auto: {' -> '.join(found.ladder)}, {found.reported.macs_fraction:.0%} of the full "
        f"compute on average, {change} {100 * abs(found.reported.lost):.1f} points of {right} "
        f"(bound: {100 * found.max_loss:g} with certainty {found.certainty:g})"
    )
