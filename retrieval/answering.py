"""What answers a question, as ids and scores: the search, and all that is left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing import IndexedImages
from retrieval.ground_truth import rows_of_content
from retrieval.question import Question, Stored, Together, Wish, digest_of

_GROWTH = 4

Rows = Int64[ndarray, " rows"]


class Found(NamedTuple):
    """What one question found, best first.

    Attributes:
        ids: Of the images.
        scores: Their cosines.
        twins: How many worse hits each stands for, which are taken for the same picture.
    """

    ids: Int64[ndarray, " hits"]
    scores: Float32[ndarray, " hits"]
    twins: Int64[ndarray, " hits"]

    def first(self, k: int) -> Found:
        """Keep the best."""
        return Found(*(column[:k] for column in self))


class Finder:
    """Answers questions as somebody wishes.

    Args:
        index: The images.
        wish: What may answer.

    Raises:
        ValueError: If the filter names a class that the index does not have.
    """

    def __init__(self, index: IndexedImages, wish: Wish = Wish()) -> None:
        self._index, self._wish = index, wish
        everything = wish.where.lets_all_through
        self._among = None if everything else index.where(wish.where)

    @property
    def left_out(self) -> Rows:
        """Rows that answer no question, because they are named by id.

        Raises:
            KeyError: If the index has no such image.
        """
        return self._index.rows_of(np.array(self._wish.leave_out, dtype=np.int64))

    def own_rows(self, questions: Sequence[Together]) -> list[Rows]:
        """Rows that do not answer each question: left out by id, or the very images it asks with.

        Raises:
            FileNotFoundError: If there is no file at a path.
            KeyError: If an image that is named by id is not in the index.
        """
        named = self.left_out
        if not self._wish.exclude_self:
            return [named] * len(questions)
        digests = self._index.metadata.column("sha256")
        own = []
        for question in questions:
            content = [
                digests[int(self._index.rows_of(np.array(each.id)))].as_py()
                if isinstance(each, Stored)
                else digest_of(each)
                for each in question.like
            ]
            rows = rows_of_content(digests, [each for each in content if each is not None])
            own.append(np.union1d(rows[rows >= 0], named))
        return own

    def find(self, questions: Sequence[Question], own: Sequence[Rows], k: int) -> list[Found]:
        """Find the k best answers of each question.

        Args:
            questions: At least one.
            own: Rows that do not answer it, of each.
            k: Hits of each; fewer where there are not so many.

        Raises:
            ValueError: If a question has no direction.
        """
        found: list[Found | None] = [None] * len(questions)
        single = [at for at, each in enumerate(questions) if each.by == "mean"]
        if single:
            vectors = np.stack([questions[at].vector for at in single])
            answers = self._nearest(vectors, [own[at] for at in single], k)
            for at, answer in zip(single, answers, strict=True):
                found[at] = answer
        return [
            self._by_best(question, rows, k) if answer is None else answer
            for question, rows, answer in zip(questions, own, found, strict=True)
        ]

    def table(
        self, vectors: Float32[ndarray, "questions dim"], own: Rows, k: int
    ) -> tuple[ndarray, ndarray, ndarray]:
        """Find the k best answers of questions that are one vector each, as tables.

        Args:
            vectors: The questions.
            own: Rows that answer none of them.
            k: Hits of each.

        Returns:
            Ids, scores, and how many each hit stands for; -1, -inf and 0 where there is none.
        """
        found = self._nearest(vectors, [own] * len(vectors), k)
        columns = max(len(each.ids) for each in found)
        shape = (len(found), columns)
        ids, scores, twins = np.full(shape, -1), np.full(shape, -np.inf), np.zeros(shape, int)
        for row, each in enumerate(found):
            there = slice(len(each.ids))
            ids[row, there], scores[row, there], twins[row, there] = each
        return ids, scores.astype(np.float32), twins

    def _nearest(
        self, vectors: Float32[ndarray, "questions dim"], own: Sequence[Rows], k: int
    ) -> list[Found]:
        """Answer questions that are one vector each."""
        most = max(map(len, own))
        collapse = self._wish.collapse
        fetch = k + most if collapse is None else 2 * k + most
        while True:
            ids, scores = self._search(vectors, fetch)
            found = [self._left(*answer) for answer in zip(ids, scores, own, strict=True)]
            if ids.shape[1] < fetch or all(len(each.ids) >= k for each in found):
                return [each.first(k) for each in found]
            fetch *= _GROWTH

    def _by_best(self, question: Question, own: Rows, k: int) -> Found:
        """Answer a question by the nearest of its images.

        Whatever none of them has among its first `fetch` has a lower score than the last of
        these: what is better is known to be complete.
        """
        fetch = k + len(own)
        while True:
            ids, scores = self._search(question.like, fetch)
            complete = ids.shape[1] < fetch
            candidates = np.unique(ids[ids >= 0])
            stored = self._index.embeddings[self._index.rows_of(candidates)]
            best = (stored @ question.like.T).max(axis=1)
            known = np.ones(len(candidates), bool) if complete else best >= scores[:, -1].max()
            if len(question.unlike):
                known &= best >= (stored @ question.unlike.T).max(axis=1)
            order = np.lexsort((candidates[known], -best[known]))
            found = self._left(candidates[known][order], best[known][order], own)
            if complete or len(found.ids) >= k:
                return found.first(k)
            fetch *= _GROWTH

    def _search(
        self, vectors: Float32[ndarray, "questions dim"], fetch: int
    ) -> tuple[Int64[ndarray, "questions hits"], Float32[ndarray, "questions hits"]]:
        if self._among is None:
            return self._index.search(vectors, fetch)
        return self._index.search(vectors, fetch, self._among)

    def _left(
        self, ids: Int64[ndarray, " hits"], scores: Float32[ndarray, " hits"], own: Rows
    ) -> Found:
        """Leave out who asks, whatever is a twin of a better hit, and places without one."""
        there = ids >= 0
        if len(own):
            there &= ~np.isin(ids, self._index.ids[own])
        ids, scores = ids[there], scores[there]
        twins = np.zeros(len(ids), dtype=np.int64)
        if self._wish.collapse is None or not len(ids):
            return Found(ids, scores, twins)
        stands_for = first_alike(
            self._index.embeddings[self._index.rows_of(ids)], self._wish.collapse
        )
        np.add.at(twins, stands_for, 1)
        kept = stands_for == np.arange(len(ids))
        return Found(ids[kept], scores[kept], twins[kept] - 1)


def first_alike(vectors: Float32[ndarray, "images dim"], above: float) -> Int64[ndarray, " images"]:
    """Say which image each is taken for: the first kept one that is as near as `above`.

    Args:
        vectors: Stored vectors, those to be kept first.
        above: Cosine.

    Returns:
        Places; an image that is kept stands for itself.
    """
    alike: Bool[ndarray, "images images"] = vectors @ vectors.T >= above
    stands_for = np.arange(len(vectors))
    kept = np.ones(len(vectors), dtype=bool)
    for place in range(1, len(vectors)):
        before = np.flatnonzero(alike[place, :place] & kept[:place])
        if len(before):
            stands_for[place], kept[place] = before[0], False
    return stands_for
