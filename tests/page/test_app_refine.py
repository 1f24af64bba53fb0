"""Going on from an answer: more like a hit, less like another, filters and a cut-off.

Expected hits are worked out by NumPy from the stored vectors.
"""

from __future__ import annotations

import numpy as np
import pytest
from page_driver import ask, hits, html, press, titles
from page_driver import say as tell

from indexing import ImageIndex
from matvit.embedding import embed
from matvit.model import MatViT


@pytest.fixture
def index(shared_place) -> ImageIndex:
    return ImageIndex.open(shared_place / "i.index")


@pytest.fixture
def query_vector(shared_place, index):
    """The query of the page, embedded at full size."""
    model = MatViT.load(shared_place / "encoder")
    pixels = model.preprocess.pixels(index.image_bytes(int(index.ids[0])))
    return embed(model, pixels[None])[0]


def shown(page, strip: int) -> list[str]:
    """Names of the hits of a strip, as their buttons tell them."""
    return [name for _, name in hits(page, f"strip-{strip}-").values()]


def ranking(index, scores, *left_out: str) -> list[str]:
    names = [index.paths[row] for row in np.argsort(-scores, kind="stable")]
    return [name for name in names if name not in left_out]


def say(page, mark: str) -> None:
    tell(page, mark)
    assert not page.exception


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_more_like_one_hit_and_less_like_another(page, index, query_vector):
    page.pills(key="sizes").set_value(["XL"]).run()
    before = shown(page, 0)
    more, less = before[1], before[0]
    stored = index.embeddings[:]
    numbers = {name: int(index.ids[index.paths.index(name)]) for name in (more, less)}
    say(page, f"+{numbers[more]}")
    liked = stored[index.paths.index(more)]
    scores = stored @ unit(unit(query_vector) + liked)
    assert shown(page, 0) == ranking(index, scores, index.paths[0], more)[:6]
    say(page, f"-{numbers[less]}")
    disliked = stored[index.paths.index(less)]
    scores = stored @ unit((unit(query_vector) + liked) / 2 - disliked / 2)
    assert shown(page, 0) == ranking(index, scores, index.paths[0], more)[:6]
    assert page.text_input(key="said").value == ""
    press(page, f"marked-{numbers[more]}")
    say(page, f"-{numbers[less]}")  # the same mark again takes it back
    assert shown(page, 0) == before


def test_marks_go_with_their_query_and_nonsense_is_no_mark(page):
    before = shown(page, 3)
    for nonsense in ("17", "+99999", "+", "+1; drop", "*3", "=99999", "=", "=1 "):
        say(page, nonsense)
    assert shown(page, 3) == before
    say(page, "+5")
    assert page.session_state["more"] == (5,)
    ask(page, "strip-3-1")
    assert page.session_state["more"] == ()
    for number in range(1, 10):
        say(page, f"+{number}")
    assert "At most 8 images can be marked" in page.error[0].value


def test_filters_keep_what_they_name(page, index, query_vector):
    page.pills(key="sizes").set_value(["XL"])
    page.slider(key="k").set_value(12)
    page.text_input(key="inside").set_value("bread/**").run()
    scores = index.embeddings[:] @ query_vector
    expected = [name for name in ranking(index, scores) if name.startswith("bread")]
    assert shown(page, 0) == expected
    page.text_input(key="inside").set_value("")
    page.multiselect(key="classes").set_value(["apple", "cheese"]).run()
    expected = ranking(index, scores, index.paths[0])
    assert shown(page, 0) == [name for name in expected if not name.startswith("bread")]
    page.multiselect(key="classes").set_value([])
    page.text_input(key="inside").set_value("nowhere/**").run()
    assert html(page, "nothing") == ["Nothing passes the filter."]
    page.text_input(key="inside").set_value("/").run()
    assert "is no pattern" in page.error[0].value
    assert not page.exception


def test_a_cut_off_says_that_there_is_no_good_match(page, index, query_vector):
    page.pills(key="sizes").set_value(["S", "XL"]).run()
    scores = np.sort(np.delete(index.embeddings[:] @ query_vector, 0))[::-1]
    cut = (np.floor(scores[1] / 0.005) + 1) * 0.005
    above = int((scores >= cut).sum())
    page.slider(key="min_score").set_value(float(cut)).run()
    assert not page.exception
    assert len(shown(page, 1)) == above
    assert len(shown(page, 0)) == 6  # nobody tuned: what scores of S stand for is not known
    assert any("was not measured by tuning" in text for text in html(page, "head"))
    page.slider(key="min_score").set_value(1.0).run()
    assert html(page, "nothing") == [f"No good match: the best has {scores[0]:.3f}, below 1.000."]
    assert titles(page) == ["S", "XL"]


def test_near_duplicates_are_shown_once(page, index, query_vector, monkeypatch):
    monkeypatch.setattr("app.page.opened.NEARLY_SAME", -1.0)
    page.pills(key="sizes").set_value(["XL"])
    page.toggle(key="collapse").set_value(True).run()
    assert not page.exception
    expected = ranking(index, index.embeddings[:] @ query_vector, index.paths[0])[:1]
    assert shown(page, 0) == expected
    assert "and 10 alike" in html(page, "cell")[0]
