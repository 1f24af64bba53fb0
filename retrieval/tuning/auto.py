"""Queries that choose for themselves: asked with a small submodel first, a larger one if unsure.

The index's own answer says how sure it is; going on costs only what the larger submodel does not
share with the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from time import perf_counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from numpy import ndarray

from indexing import IndexMismatchError
from matvit import ContinuedEmbedding, Encoder, ImageLike
from retrieval.answering import Finder, Found
from retrieval.question import Asked, Stored, Together, Wish
from retrieval.retriever import (
    Hits,
    Retriever,
    Step,
    check_question,
    decode,
    look_up,
    name_of,
)
from retrieval.tuning.record import Escalation, Tuning, whole

RANKS = 10
"""Hits that confidence looks at."""

_TOGETHER = 256


class AutoRetriever:
    """Asks an index with as large a submodel as each query needs.

    Args:
        retriever: A whole encoder and its index.
        tuning: What `tune` found out about them.

    Raises:
        IndexMismatchError: If it was found out about another encoder.
        ValueError: If tuning found no way to choose per query that is worth it, or the encoder is
            an extracted submodel.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from indexing import Corpus, ImageIndex
        >>> from matvit import MatViT, MatViTConfig
        >>> from retrieval import tune
        >>> shape = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
        >>> folder, encoder = TemporaryDirectory(), MatViT(MatViTConfig(**shape))
        >>> for red in range(48):
        ...     Image.new("RGB", (16, 16), (5 * red, 0, 0)).save(f"{folder.name}/{red}.png")
        >>> index = ImageIndex.build(encoder, Corpus.open(folder.name), f"{folder.name}/index")
        >>> retriever = Retriever(encoder, index)
        >>> tuning = tune(retriever, size=40, latency=False, max_loss=0.9)
        >>> hits = AutoRetriever(retriever, tuning).search(Image.new("RGB", (16, 16), "red"), k=3)
        >>> len(hits), hits.submodel == hits.steps[-1].submodel
        (3, True)
        >>> folder.cleanup()
    """

    def __init__(self, retriever: Retriever, tuning: Tuning) -> None:
        self.retriever, self._model = retriever, whole(retriever.encoder)
        if not tuning.tuned_for.is_of(self._model):
            raise IndexMismatchError(
                f"{tuning.folder} was tuned with another encoder than {self._model.name}; "
                f"run `matvit tune {retriever.index.path}`"
            )
        if tuning.escalation is None:
            raise ValueError(
                f"tuning {retriever.index.path} found no per-query choice worth making; name a "
                "submodel or a budget, or tune with a larger max_loss"
            )
        self.escalation = tuning.escalation

    def search(self, image: Asked, k: int = 10, wish: Wish = Wish()) -> Hits:
        """Find the k most similar images; see `search_batch`."""
        (hits,) = self.search_batch([image], k, wish)
        return hits

    def search_batch(self, images: Sequence[Asked], k: int = 10, wish: Wish = Wish()) -> list[Hits]:
        """Find the k most similar images of each query, which goes on if its answer is not sure.

        Args:
            images: Paths, bytes of image files, Pillow images, or `Stored` images of the index,
                which need no encoding and so have nothing to choose.
            k: Hits per query; an index with fewer images returns all it has.
            wish: What may answer.

        Returns:
            One answer per query, in order; its `steps` are the submodels that it was asked with.

        Raises:
            FileNotFoundError: If there is no file at a path.
            ValueError: If an image cannot be read, k is below 1, or several ask together.
            IndexMismatchError: If the encoder has changed since the index was built.
        """
        check_question(self._model, self.retriever.index, k)
        found: list[Hits] = []
        size = _TOGETHER if wish == Wish(where=wish.where) else 1
        for alike, run in groupby(images, type):
            part = list(run)
            if alike is Together:
                raise ValueError("auto chooses for one image; several together need a submodel")
            if alike is Stored:
                found += self.retriever.search_batch(part, k=k, wish=wish)
                continue
            new = [image for image in part if not isinstance(image, (Stored, Together))]
            for start in range(0, len(new), size):
                found += self._ask(new[start : start + size], k, wish)
        return found

    def _ask(self, images: Sequence[ImageLike], k: int, wish: Wish) -> list[Hits]:
        """Answer queries together; only one where who asks, or a twin of a hit, is left out."""
        index, twins = self.retriever.index, dict[int, int]()
        finder = Finder(index, wish)
        (own, *_) = finder.own_rows([Together(like=(image,)) for image in images])

        def search(vectors: Float32[ndarray, "queries dim"]) -> _Found:
            ids, scores, stands_for = finder.table(vectors, own, max(k, RANKS))
            twins.update(zip(ids[0].tolist(), stands_for[0].tolist(), strict=True))
            return ids, scores

        def labels_of(ids: Int64[ndarray, "queries k"]) -> Int64[ndarray, "queries k"]:
            known = index.rows_of(np.where(ids < 0, index.ids[0], ids))
            return np.where(ids < 0, -1, index.labels[known])

        answers = escalate(
            self.escalation,
            self._model,
            decode(self._model, images),
            search,
            labels_of if index.class_names else None,
        )
        return [
            Hits(
                query=name_of(image),
                submodel=answer.steps[-1].submodel,
                macs=sum(step.macs for step in answer.steps),
                encode_ms=sum(step.encode_ms for step in answer.steps),
                search_ms=sum(step.search_ms for step in answer.steps),
                hits=look_up(index, answer.found(k, twins)),
                steps=answer.steps,
            )
            for image, answer in zip(images, answers, strict=True)
        ]


class Answer(NamedTuple):
    """What one query found in the end, and how it got there."""

    ids: Int64[ndarray, " k"]
    scores: Float32[ndarray, " k"]
    steps: tuple[Step, ...]

    def found(self, k: int, twins: Mapping[int, int]) -> Found:
        """The k best hits, and how many each stands for; places without a hit left out."""
        ids = self.ids[:k][self.ids[:k] >= 0]
        stands_for = np.array([twins.get(number, 0) for number in ids.tolist()], dtype=np.int64)
        return Found(ids, self.scores[: len(ids)], stands_for)


Search = Callable[
    [Float32[ndarray, "queries dim"]],
    tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]],
]
LabelsOf = Callable[[Int64[ndarray, "queries k"]], Int64[ndarray, "queries k"]]


def confidence_of(
    scores: Float[ndarray, "queries ranks"], labels: Int64[ndarray, "queries ranks"] | None = None
) -> Float[ndarray, " queries"]:
    """Say how sure an answer is, from the answer alone.

    This is the margin between the first and the second score. With labels, the share of the
    other hits that have the label of the first one comes on top, and counts for much more.

    Args:
        scores: Of the hits, best first; -inf for none.
        labels: Of the hits, -1 for none.

    Returns:
        Higher is surer. An answer of one hit has nothing that it could be confused with: infinity.
    """
    if scores.shape[1] < 2:
        return np.full(len(scores), np.inf)
    with np.errstate(invalid="ignore"):
        margin = np.nan_to_num(scores[:, 0] - scores[:, 1], nan=np.inf, posinf=np.inf)
    if labels is None:
        return np.asarray(margin, dtype=np.float64)
    same = (labels[:, 1:] == labels[:, :1]) & (labels[:, :1] >= 0)
    there = np.isfinite(scores[:, 1:])
    share = (same & there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return np.asarray(margin + share, dtype=np.float64)


def escalate(
    escalation: Escalation,
    model: Encoder,
    pixels: UInt8[ndarray, "queries height width 3"],
    search: Search,
    labels_of: LabelsOf | None,
) -> list[Answer]:
    """Ask with one submodel after the other until each query is sure.

    Args:
        escalation: Which submodels, and when to stop.
        model: A whole encoder.
        pixels: The queries, at least one.
        search: Finds the nearest images of vectors; at least `RANKS` if there are so many.
        labels_of: Classes of images by id; None if the index has none.

    Returns:
        One answer per query, in order.
    """
    answers: list[Answer | None] = [None] * len(pixels)
    steps: list[tuple[Step, ...]] = [()] * len(pixels)
    waiting = np.arange(len(pixels))
    for rung, found, confidence, step in _climb(escalation, model, pixels, search, labels_of):
        last = rung == len(escalation.ladder) - 1
        for place, query in enumerate(waiting):
            steps[query] += (replace(step, confidence=float(confidence[place])),)
            if last or confidence[place] >= escalation.thresholds[rung]:
                answers[query] = Answer(found[0][place], found[1][place], steps[query])
        waiting = np.array([query for query in waiting if answers[query] is None], dtype=np.int64)
    return [answer for answer in answers if answer is not None]


_Found = tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]


def _climb(
    escalation: Escalation,
    model: Encoder,
    pixels: UInt8[ndarray, "queries height width 3"],
    search: Search,
    labels_of: LabelsOf | None,
) -> Iterator[tuple[int, _Found, Float[ndarray, " queries"], Step]]:
    """Yield the answers of each rung to the queries that were not sure at the one before."""
    images, count = ContinuedEmbedding(model, pixels), len(pixels)
    for rung, submodel in enumerate(escalation.ladder):
        added = images.added_macs(submodel)
        start = perf_counter()
        vectors = images.embed(submodel)
        embedded = perf_counter()
        ids, scores = search(vectors)
        searched = perf_counter()
        labels = labels_of(ids[:, :RANKS]) if escalation.uses_labels and labels_of else None
        confidence = confidence_of(scores[:, :RANKS], labels)
        step = Step(
            submodel=submodel,
            macs=added,
            encode_ms=1000 * (embedded - start) / count,
            search_ms=1000 * (searched - embedded) / count,
            confidence=0.0,  # each query has its own
        )
        yield rung, (ids, scores), confidence, step
        if rung == len(escalation.ladder) - 1:
            return
        unsure = np.flatnonzero(confidence < escalation.thresholds[rung])
        if not len(unsure):
            return
        if len(unsure) < count:
            images, count = images.take(unsure), len(unsure)
