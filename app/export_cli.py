"""`matvit index export`: an index for other programs: to look at, or to be asked there."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import indexing
from app.gallery import small_picture
from app.options import IndexArgument, bad_usage
from app.output import show
from matvit import Preprocess

_SIDE = 96


class Target(StrEnum):
    """For which program."""

    ATLAS = "atlas"
    LANCE = "lance"
    PARQUET = "parquet"
    QDRANT = "qdrant"


def index_export(
    index: IndexArgument,
    out: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            help="What to write: a file for atlas and parquet, NAME.lance, NAME.qdrant, or a "
            "Qdrant server's http://HOST:6333/NAME.",
        ),
    ],
    to: Annotated[
        Target,
        typer.Option(
            help="lance, qdrant: a store that `matvit search` asks like an index. parquet: all "
            "vectors and names. atlas: a map by principal components, for Embedding Atlas."
        ),
    ] = Target.ATLAS,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="Put a small picture of each image into it (atlas)."),
    ] = False,
) -> None:
    """Write what an index holds for other programs: names, classes, vectors, and who may ask."""
    if pictures and to is not Target.ATLAS:
        bad_usage(ValueError(f"--pictures goes with --to atlas, not with --to {to.value}"))
    write = {
        Target.LANCE: "write_lance", Target.QDRANT: "write_qdrant", Target.PARQUET: "write_parquet",
    }.get(to)  # fmt: skip
    opened = indexing.ImageIndex.open(index)
    if write is None:
        _export_atlas(opened, Path(out), pictures=pictures)
        return
    getattr(indexing, write)(opened, out, progress=True)  # imported when it is wanted
    show(f"{len(opened):,} images in {out}, embedded by {opened.described.encoder.name}.")
    if to is not Target.PARQUET:
        show(f"Ask it: matvit search {out} IMAGE")


def _export_atlas(opened: indexing.ImageIndex, out: Path, *, pictures: bool) -> None:
    """Write a map, and say how to look at it."""
    preprocess = Preprocess(img_size=_SIDE)

    def picture(number: int) -> bytes | None:
        try:
            return small_picture(opened.image_bytes(number), preprocess)
        except (OSError, ValueError):
            return None

    plane = indexing.write_atlas(opened, out, picture=picture if pictures else None, progress=True)
    image = " --image image" if pictures else ""
    show(
        f"{len(opened):,} images in {out}; the map tells {sum(plane.shares):.0%} of the variance.",
        f"Look at it: embedding-atlas {out} --x x --y y{image}",
        f"Or by UMAP: embedding-atlas {out} --vector vector{image}",
    )
