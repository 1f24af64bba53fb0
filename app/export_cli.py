"""`matvit index export`: an index for other programs to look at."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import indexing
from app.gallery import small_picture
from app.options import IndexArgument
from app.output import show
from matvit import Preprocess

_SIDE = 96


class Target(StrEnum):
    """For which program."""

    ATLAS = "atlas"


def index_export(
    index: IndexArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file to write.")],
    to: Annotated[
        Target, typer.Option(help="atlas: a map by principal components, for Embedding Atlas.")
    ] = Target.ATLAS,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Put a small picture of each image into it.")
    ] = False,
) -> None:
    """Write what an index holds for other programs: names, classes, places on a map, vectors."""
    assert to is Target.ATLAS
    opened = indexing.ImageIndex.open(index)
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
