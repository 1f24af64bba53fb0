from __future__ import annotations

import io

import pytest
from PIL import Image

from app import panels
from indexing import Corpus, ImageIndex
from retrieval import Retriever, evaluate


@pytest.fixture
def retriever(tiny_model, photo_folder, tmp_path) -> Retriever:
    index = ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")
    return Retriever(tiny_model, index)


@pytest.fixture
def query(photo_folder) -> bytes:
    return (photo_folder / "bread" / "01.png").read_bytes()


def test_columns_hold_each_size_against_the_full_encoder(retriever, query):
    columns = panels.compare(retriever, query, ["S", "XL"], k=4)
    small, full = columns
    assert (small.title, full.title) == ("S", "XL")
    assert full.fraction == 1 > small.fraction
    assert full.overlap == 1
    assert [cell.change for cell in full.cells] == [0, 0, 0, 0]
    wanted = [hit.id for hit in retriever.search(query, "XL", 4)]
    found = [hit.id for hit in retriever.search(query, "S", 4)]
    assert [cell.id for cell in small.cells] == found
    assert small.overlap == len(set(found) & set(wanted)) / 4
    for cell in small.cells:
        place = wanted.index(cell.id) + 1 if cell.id in wanted else None
        assert cell.change == (None if place is None else place - cell.rank)


def test_labels_are_right_or_wrong_only_where_known(retriever, query):
    (known,) = panels.compare(retriever, query, ["XL"], k=3, label="bread")
    assert known.cells[0].right is True
    assert {cell.right for cell in known.cells} <= {True, False}
    (unknown,) = panels.compare(retriever, query, ["XL"], k=3)
    assert {cell.right for cell in unknown.cells} == {None}


@pytest.mark.parametrize(
    ("change", "right", "caption"),
    [
        (0, None, "2 · 0.500 ="),
        (3, True, "2 · 0.500 ▲3 :green[✓]"),
        (-1, False, "2 · 0.500 ▼1 :red[✗]"),
        (None, None, "2 · 0.500 new"),
    ],
)
def test_captions_say_rank_score_and_move(change, right, caption):
    cell = panels.Cell(id=1, path="a", score=0.5, rank=2, change=change, right=right)
    assert cell.caption == caption


def test_an_unreadable_query_is_an_error(retriever):
    with pytest.raises(ValueError, match="not a readable image"):
        panels.compare(retriever, b"text", ["S"], k=3)


@pytest.mark.parametrize("size", [(10, 20), (400, 100), (160, 160)])
def test_thumbnails_fit_their_square_and_keep_the_shape(size):
    buffer = io.BytesIO()
    Image.new("RGBA", size, (255, 0, 0, 128)).save(buffer, "PNG")
    with Image.open(io.BytesIO(panels.thumbnail(buffer.getvalue()))) as small:
        assert max(small.size) == panels.THUMBNAIL
        assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_thumbnails_show_what_the_encoder_sees():
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    with Image.open(io.BytesIO(panels.thumbnail(buffer.getvalue()))) as small:
        assert small.size == (80, 160)
        assert small.getpixel((40, 80)) == (255, 255, 255)


def test_the_chart_shows_every_point_and_marks_the_sizes_in_use(retriever, photo_folder):
    queries = Corpus.open(photo_folder)
    frontier = evaluate(retriever, queries, ["S", "1xS,1xXL"], k=3, latency_queries=0)
    chart = panels.frontier_chart(frontier, ["S"]).to_dict()
    (rows,) = chart["datasets"].values()
    assert [row["submodel"] for row in rows] == ["S", "1xS,1xXL", "XL"]
    assert [row["chosen"] for row in rows] == [True, False, False]
    assert [row["trained"] for row in rows] == [True, False, True]
    assert [row["recall"] for row in rows] == [frontier.recall(point) for point in frontier]
