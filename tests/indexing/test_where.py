"""Which images may be found: by pattern, class and time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, Where, parse_time

PATHS = ["holiday/a.jpg", "holiday/2019/B.JPG", "work/a.jpg", "work/holiday.gif"]
LABELS = np.array([0, 0, 1, -1])
NAMES = ["holiday", "work"]
DAY = 86_400 * 10**9
TIMES = np.array([1, 2, 3, -1], dtype=np.int64) * DAY


def kept(**conditions) -> list[int]:
    mask = Where(**conditions).mask(PATHS, LABELS, NAMES, np.where(TIMES < 0, -1, TIMES))
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"inside": ("holiday/**",)}, [0, 1]),
        ({"inside": ("holiday/*.jpg",)}, [0]),
        ({"inside": ("*.jpg",)}, [0, 1, 2]),
        ({"inside": ("holiday",)}, [0, 1]),
        ({"inside": ("2019", "*.gif")}, [1, 3]),
        ({"outside": ("work/**",)}, [0, 1]),
        ({"inside": ("*.jpg",), "outside": ("2019",)}, [0, 2]),
        ({"labels": ("holiday",)}, [0, 1]),
        ({"labels": ("holiday", "work")}, [0, 1, 2]),
        ({"labels": ("work",), "inside": ("holiday/**",)}, []),
        ({"newer": datetime.fromtimestamp(86_400, UTC)}, [1, 2]),
        ({"older": datetime.fromtimestamp(2 * 86_400, UTC)}, [0]),
        ({"newer": datetime.fromtimestamp(86_400, UTC), "labels": ("holiday",)}, [1]),
    ],
)
def test_all_conditions_must_hold(conditions, rows):
    assert kept(**conditions) == rows


def test_an_unknown_class_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match="no class 'wrok' in this index; it has work and 1 more"):
        kept(labels=("wrok",))
    with pytest.raises(ValueError, match="the images of this index have no classes"):
        Where(labels=("a",)).mask(PATHS, LABELS, None, TIMES)


def test_an_empty_pattern_is_refused():
    with pytest.raises(ValueError, match="'' is no pattern"):
        Where(inside=("",))


@pytest.mark.parametrize(
    ("text", "age"),
    [("12h", timedelta(hours=12)), ("30d", timedelta(days=30)), ("2 w", timedelta(weeks=2))],
)
def test_an_age_counts_from_now(text, age):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_time(text, now) == now - age


def test_a_date_is_read_in_local_time_and_nonsense_refused():
    assert parse_time("2026-01-31") == datetime(2026, 1, 31).astimezone()
    assert parse_time("2026-01-31T18:00+00:00") == datetime(2026, 1, 31, 18, tzinfo=UTC)
    for text in ("yesterday", "", "31.1.2026", "-3d"):
        with pytest.raises(ValueError, match="is no time; write one such as 2026-01-31"):
            parse_time(text)


def test_an_index_searches_among_what_a_filter_lets_through(tmp_path):
    for number in range(30):
        photo(tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png", number)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "i")
    index = index.remove(paths=["b/03.png"])
    mask = index.where(Where(labels=("b",)))
    assert [index.path_of(row)[0] for row in np.flatnonzero(mask)] == ["b"] * 14
    queries = index.embeddings[:5]
    ids, scores = index.search(queries, 4, mask)
    cosines = queries @ index.embeddings[np.flatnonzero(mask)].T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(ids, index.ids[mask][order])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, order, axis=1), atol=1e-6)
    with pytest.raises(ValueError, match="among must have 29 rows, got"):
        index.search(queries, 4, mask[1:])
