"""The nearest rows without a search structure, against sorting all scores.

Vectors with coordinates of +-1/4 in 16 dimensions have inner products that are multiples of 1/8:
exact in float32 however they are summed, and full of ties.

Mutants these must catch: ties cut off by the candidates that FAISS proposes; ties by row where
names are wanted; a block whose rows are taken for those of the first.
"""

from __future__ import annotations

import numpy as np
import pytest
from vectors import stored_embeddings

from indexing.kinds import exhaustive
from indexing.kinds.exhaustive import nearest
from indexing.kinds.scoring import ExactScores

ROWS, DIM = 600, 16


class NoTable:
    float_table = None


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    few = rng.choice(np.float32([-0.25, 0.25]), (12, DIM))
    return few[rng.integers(0, len(few), ROWS)]


@pytest.mark.parametrize("k", [1, 10, 300, ROWS])
@pytest.mark.parametrize("block", [100, 1000])
def test_equal_scores_come_by_smaller_name_however_many_there_are(
    tmp_path, rows, k, block, monkeypatch
):
    monkeypatch.setattr(exhaustive, "_ROWS_PER_BLOCK", block)
    embeddings = stored_embeddings(tmp_path, rows)
    names = np.random.default_rng(1).permutation(ROWS) * 7
    queries = rows[[0, 5, 400]]
    found, scores = nearest(queries, k, embeddings, ExactScores(NoTable(), embeddings), names)
    expected = queries.astype(np.float64) @ rows.T.astype(np.float64)
    for row in range(len(queries)):
        order = sorted(range(ROWS), key=lambda each: (-expected[row, each], names[each]))[:k]
        assert found[row].tolist() == names[order].tolist()
        np.testing.assert_array_equal(scores[row], expected[row, order])
