"""The map: where images and the sizes of a query lie, by NumPy from the stored vectors."""

from __future__ import annotations

import numpy as np
import pytest
from page_driver import turn_to
from photo_index import open_photos, upload

from app.page import map as page_map
from matvit.embedding import embed


def plane_of(vectors):
    """Mean and axes by a singular value decomposition, the largest entry of each positive."""
    mean = vectors.mean(axis=0)
    axes = np.linalg.svd(vectors - mean, full_matrices=False)[2][:2]
    return mean, axes * np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]


def test_images_and_the_way_of_the_query_lie_where_numpy_puts_them(
    tiny_model, photo_folder, tmp_path
):
    opened = open_photos(tiny_model, photo_folder, tmp_path / "i.index")
    vectors = opened.index.embeddings[:].astype(np.float64)
    mean, axes = plane_of(vectors)
    places = page_map.places_of(opened.index, opened.plane)
    np.testing.assert_allclose(places[["x", "y"]], (vectors - mean) @ axes.T, atol=1e-5)
    assert list(places["path"]) == opened.index.paths
    query = upload(photo_folder / "bread" / "01.png")
    way = page_map.way_of(opened, query, ["S", "XL"])
    pixels = tiny_model.preprocess.pixels(query.data)[None]
    small, full = (embed(tiny_model, pixels, tiny_model.submodel(each))[0] for each in ("S", "XL"))
    expected = (np.stack([small, full]) - mean) @ axes.T
    np.testing.assert_allclose(way[["x", "y"]], expected, atol=1e-3)
    assert list(way["cosine"]) == pytest.approx([small @ full, 1], abs=1e-3)


def test_only_so_many_images_are_drawn_and_from_everywhere(
    tiny_model, photo_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(page_map, "MOST_SHOWN", 4)
    opened = open_photos(tiny_model, photo_folder, tmp_path / "i.index")
    drawn = list(page_map.places_of(opened.index, opened.plane)["path"])
    assert drawn == [opened.index.paths[row] for row in (0, 3, 7, 11)]


def test_the_tab_shows_the_map(page):
    turn_to(page, "map")
    assert not page.exception
    assert any("12 of 12 images by their two principal" in text.value for text in page.caption)
    page.toggle(key="near").set_value(True).run()
    assert not page.exception
