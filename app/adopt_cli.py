"""`matvit index adopt`: an index of vectors that somebody has already."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import indexing
from app.building import (
    ExcludeOption,
    IncludeOption,
    WorkersOption,
    check_request,
    decoders_of,
    say_kind,
    stoppable,
)
from app.options import Device, DeviceOption, JsonOption, load_to_build
from app.output import exit_with_failures, report_failures, say, show, show_json


def index_adopt(
    vectors: Annotated[
        Path,
        typer.Argument(
            metavar="VECTORS", help="A .npy, Parquet or flat FAISS file, or a folder of the first."
        ),
    ],
    images: Annotated[
        str, typer.Option(help="Their images: folder, Parquet files or tar archives.")
    ],
    encoder: Annotated[
        str, typer.Option(help="What they are from: bundled encoder or checkpoint folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new index.")],
    table: Annotated[
        Path | None,
        typer.Option(help="Parquet or CSV file with the path of each vector, or id and path."),
    ] = None,
    path_column: Annotated[
        str | None, typer.Option(help="Column of the paths [default: path, file_name, ...].")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Column of the vectors [default: the one of lists].")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Images to embed and compare.")] = 64,
    min_cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="That each of them must have with its vector.")
    ] = 0.95,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Go on as if nobody had sorted the images.")
    ] = False,
    kind: Annotated[
        str, typer.Option(help="Search structure; see `matvit index build --help`.")
    ] = "auto",
    max_memory: Annotated[
        str | None, typer.Option(help="What the search structure may take, such as 4GB.")
    ] = None,
    workers: WorkersOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Make an index of vectors that the encoder has given before; nothing is embedded again.

    A sample of the images is, to see that they are its vectors. Without names the vectors are in
    the order of the images: by path.
    """
    check_request(kind, None, max_memory, include, exclude)
    model = load_to_build(encoder, device)
    given = indexing.read_given(
        vectors, table, path_column=path_column, vector_column=vector_column
    )
    corpus = indexing.Corpus.open(
        images, include=include, exclude=exclude, labels=False if no_labels else None
    )
    most = None if max_memory is None else indexing.parse_bytes(max_memory)
    with stoppable(out):
        report = indexing.adopt_index(
            model,
            given,
            corpus,
            out,
            request=indexing.KindRequest(kind=kind, max_memory_bytes=most),
            sample=sample,
            min_cosine=min_cosine,
            decoders=decoders_of(256, workers, processes=False),
            progress=True,
        )
    report_failures(indexing.read_failures(out, indexing.read_finished(out).failure_files))
    say_kind(out)
    say(f"{report.sampled:,} images were embedded: the lowest cosine is {report.cosine:.4f}.")
    if report.without_vector:
        say(f"{report.without_vector:,} images have no vector; matvit index add {out} embeds them.")
    if report.without_image:
        say(f"{report.without_image:,} vectors were left out: their images are not there.")
    if as_json:
        show_json({"path": str(out), **asdict(report)})
    else:
        show(f"{report.images:,} images in {out}, with their own vectors of {model.name}.")
    exit_with_failures(report.failed + report.without_image)
