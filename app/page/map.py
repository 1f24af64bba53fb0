"""The images of an index in a plane, and the way of the query from the smallest size to full."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from app.output import readable
from app.page import visit
from app.page.looks import plain, spoken
from app.page.opened import Opened
from app.page.pictures import Query
from app.page.visit import Shown
from indexing import IndexedImages, Plane
from matvit import embed

MOST_SHOWN = 4_000
"""Images on a map: as many as a browser draws at once."""

_MOST_CLASSES = 12
_WAY, _OTHER = "#d6604d", "#7d8a9c"
_ROOM = 1.7


def draw_map(shown: Shown) -> None:
    """Draw the map and the query on it."""
    st.subheader("Where the images lie, and where each size takes the query", anchor=False)
    try:
        query = visit.query(shown)
        way = way_of(shown.opened, query, shown.trained)
    except (OSError, ValueError) as error:
        st.error(f"This cannot be used as a query: {plain(error)}")
        return
    near = st.toggle("Around the query", key="near")
    places = _places(shown.opened)
    st.altair_chart(map_chart(places, way, near=near), width="stretch")
    plane = shown.opened.plane
    st.caption(
        f"{len(places):,} of {len(shown.opened.index):,} images by their two principal components, "
        f"which tell {sum(plane.shares):.0%} of their variance: what is far apart here differs, "
        f"what is near need not be alike. The query is {plain(query.name)}. Scroll to zoom."
    )


@st.cache_data(max_entries=1, show_spinner="Drawing the map …", hash_funcs={Opened: id})
def _places(opened: Opened) -> pd.DataFrame:
    return places_of(opened.index, opened.plane)


def places_of(index: IndexedImages, plane: Plane) -> pd.DataFrame:
    """Names, classes and places of images, evenly spread if there are many."""
    rows = np.unique(np.linspace(0, len(index) - 1, MOST_SHOWN).astype(np.int64))
    found = plane.place(index.embeddings[rows])
    names, labels = index.class_names, index.labels[rows]
    return pd.DataFrame(
        {
            "path": [readable(index.path_of(row)) for row in rows.tolist()],
            "class": [readable(names[n]) if names and n >= 0 else "" for n in labels.tolist()],
            "x": found[:, 0],
            "y": found[:, 1],
        }
    )


def way_of(opened: Opened, query: Query, submodels: Sequence[str]) -> pd.DataFrame:
    """Where each size takes the query, the cheapest first.

    Raises:
        ValueError: If the query cannot be read.
    """
    encoder = opened.retriever.encoder
    pixels = opened.sights.of(query).pixels[None]
    vectors = [embed(encoder, pixels, encoder.submodel(each))[0] for each in submodels]
    places = opened.plane.place(np.stack(vectors))
    cosines = [float(vector @ vectors[-1]) for vector in vectors]
    return pd.DataFrame(
        {
            "submodel": [spoken(each) for each in submodels],
            "step": range(len(submodels)),
            "cosine": cosines,
            "x": places[:, 0],
            "y": places[:, 1],
        }
    )


def map_chart(places: pd.DataFrame, way: pd.DataFrame, *, near: bool) -> alt.LayerChart:
    """Draw images as dots and the query as a line from size to size.

    Args:
        places: See `places_of`.
        way: See `way_of`.
        near: Show only what is around the query.
    """
    bare = alt.Axis(labels=False, ticks=False, grid=False)
    x = alt.X("x:Q", title=None, axis=bare, scale=_scale(way["x"], near=near))
    y = alt.Y("y:Q", title=None, axis=bare, scale=_scale(way["y"], near=near))
    few = 1 < places["class"].nunique() <= _MOST_CLASSES
    colour = (
        alt.Color("class:N", legend=alt.Legend(orient="top", title=None))
        if few
        else alt.value(_OTHER)
    )
    dots = (
        alt.Chart(places)
        .mark_circle(size=34, opacity=0.55, clip=True)
        .encode(x=x, y=y, color=colour, tooltip=["path:N", "class:N"])
    )
    line = alt.Chart(way).encode(x=x, y=y, order="step:O")
    tooltip = ["submodel:N", alt.Tooltip("cosine:Q", format=".4f", title="cosine with full")]
    layers = [
        dots,
        line.mark_line(color=_WAY, strokeWidth=2.5, clip=True),
        line.mark_circle(color=_WAY, size=110, opacity=1, clip=True).encode(tooltip=tooltip),
        line.mark_text(dy=-13, fontWeight="bold", fontSize=13, clip=True).encode(text="submodel:N"),
    ]
    chart: alt.LayerChart = alt.LayerChart(layer=layers, height=560).interactive()
    return chart


def _scale(values: pd.Series[float], *, near: bool) -> alt.Scale:
    """All there is, or what is around some values, with some room on both sides."""
    if not near:
        return alt.Scale(zero=False)
    low, high = float(values.min()), float(values.max())
    room, middle = _ROOM * max(high - low, 0.02), (low + high) / 2
    return alt.Scale(zero=False, domain=[middle - room, middle + room])
