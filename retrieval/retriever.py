"""Searching an index with an image, through any submodel of the encoder that built it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, overload

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from indexing import IndexedImages
from matvit import Encoder, Granularity, ImageLike, Submodel, count_macs, embed
from retrieval.answering import Finder, Found
from retrieval.question import Asked, Question, Stored, Together, Wish, named, together


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that a search found.

    Attributes:
        rank: Place in the answer, from 1.
        id: Its number in the index.
        path: Its name in the index.
        score: Cosine of query and image, higher is better.
        label: Name of its class; None without one.
        twins: Worse hits that it stands for, if those of the same picture are shown as one.
    """

    rank: int
    id: int
    path: str
    score: float
    label: str | None = None
    twins: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One submodel that a query was asked with which chose for itself.

    Attributes:
        submodel: As text.
        macs: Multiply-accumulates that it added to the steps before.
        encode_ms: Milliseconds that embedding with it took.
        search_ms: Milliseconds that searching took.
        confidence: How sure its answer is.
    """

    submodel: str
    macs: int
    encode_ms: float
    search_ms: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Hits(Sequence[Hit]):
    """The answer to one query: its hits, best first, and what they cost.

    Attributes:
        query: Path of the image asked with, as it was given, or its name in the index; of several
            `a.jpg + b.jpg - c.jpg`. None for an image without a name.
        submodel: What embedded the query, as text; the full one if it is stored.
        macs: Multiply-accumulates of embedding it: all its images that were not stored.
        encode_ms: Milliseconds to embed the decoded query; in a batch, each query's share.
        search_ms: Milliseconds to search the index; in a batch, each query's share.
        hits: The hits.
        steps: Of a query that chose for itself, the submodels it was asked with; the last one
            answered, and `macs`, `encode_ms` and `search_ms` are sums over them. Empty otherwise.
        encoded: Images that were encoded; 0 if all that was asked with is stored.

    Examples:
        >>> hit = Hit(rank=1, id=7, path="cats/7.jpg", score=0.93)
        >>> cost = {"macs": 8, "encode_ms": 2.0, "search_ms": 0.1}
        >>> hits = Hits(query="q.jpg", submodel="S", hits=(hit,), **cost)
        >>> [(hit.path, hit.score) for hit in hits]
        [('cats/7.jpg', 0.93)]
    """

    query: str | None
    submodel: str
    macs: int
    encode_ms: float
    search_ms: float
    hits: tuple[Hit, ...]
    steps: tuple[Step, ...] = ()
    encoded: int = 1

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, in the stable shape of `matvit search --json`.

        `steps` is there only if the query chose for itself, `encoded` only if it is not 1, and
        `twins` of a hit only if it stands for others.
        """
        values = asdict(self)
        for hit in values["hits"]:
            del hit["label"]
            if not hit["twins"]:
                del hit["twins"]
        if values["encoded"] == 1:
            del values["encoded"]
        steps = [
            {**step, "confidence": step["confidence"] if isfinite(step["confidence"]) else None}
            for step in values.pop("steps")
        ]
        return {**values, "hits": list(values["hits"]), **({"steps": steps} if steps else {})}

    def at_least(self, min_score: float) -> Hits:
        """Keep the hits that score so much: none at all if nothing is a good match.

        Scores of sizes differ; on the full encoder's scale, see `Tuning.on_full_scale`, a
        cut-off means the same for all.
        """
        return replace(self, hits=tuple(hit for hit in self.hits if hit.score >= min_score))


class Retriever:
    """An index and the encoder that asks it.

    Threads can search with different submodels at once.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from indexing import Corpus, ImageIndex
        >>> from matvit import load_encoder
        >>> folder, encoder = TemporaryDirectory(), load_encoder("matvit-tiny64")
        >>> for colour in ("red", "green", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(f"{folder.name}/{colour}.png")
        >>> index = ImageIndex.build(encoder, Corpus.open(folder.name), f"{folder.name}/index")
        >>> retriever = Retriever(encoder, index)
        >>> [hit.path for hit in retriever.search(Image.new("RGB", (64, 64), "darkred"), "S", k=2)]
        ['red.png', 'blue.png']
        >>> folder.cleanup()

    Args:
        encoder: The encoder that built the index, or a submodel extracted from it.
        index: The images to search.

    Raises:
        IndexMismatchError: If the index was built by another encoder or preprocessing.
    """

    def __init__(self, encoder: Encoder, index: IndexedImages) -> None:
        index.check_encoder(encoder)
        self.encoder = encoder
        self.index = index

    def search(
        self,
        image: Asked,
        submodel: Submodel | Granularity | str | None = None,
        k: int = 10,
        wish: Wish = Wish(),
    ) -> Hits:
        """Find the k most similar images; see `search_batch`."""
        (hits,) = self.search_batch([image], submodel, k, wish)
        return hits

    def search_batch(
        self,
        images: Sequence[Asked],
        submodel: Submodel | Granularity | str | None = None,
        k: int = 10,
        wish: Wish = Wish(),
    ) -> list[Hits]:
        """Find the k most similar images of each query, all embedded together.

        Args:
            images: Paths, bytes of image files, files open for reading bytes, Pillow images or
                arrays of uint8 in (height, width, 3); `Stored` images of the index, which are not
                embedded again; or several `Together`.
            submodel: What embeds the queries, such as `"S"` or `"4xS,2xXL"`; None for the full
                encoder. `Tuning.choose` picks one for a budget.
            k: Hits per query; an index with fewer images returns all it has.
            wish: What may answer.

        Returns:
            One answer per query, in order.

        Raises:
            FileNotFoundError: If there is no file at a path.
            KeyError: If the index has no such stored image.
            ValueError: If an image cannot be read, the submodel is not one of the encoder's, k
                is below 1, or the wish names a class that the index does not have.
            IndexMismatchError: If the encoder has changed since the index was built.
        """
        index = self.index
        check_question(self.encoder, index, k)
        chosen = self.encoder.submodel(submodel)
        if not images:
            return []
        finder, asked = Finder(index, wish), [together(image) for image in images]
        own = finder.own_rows(asked)
        vectors, encode_ms = self._embed(asked, chosen)
        questions = _questions(asked, vectors)
        start = perf_counter()
        found = finder.find(questions, own, k)
        search_ms = 1000 * (perf_counter() - start) / len(images)
        macs = count_macs(self.encoder.config, chosen)
        answers = []
        for question, answer in zip(asked, found, strict=True):
            encoded = sum(not isinstance(image, Stored) for image in question.images)
            answers.append(
                Hits(
                    query=named(question, [self._name_of(each) for each in question.images]),
                    submodel=str(chosen if encoded else full_of(self.encoder)),
                    macs=encoded * macs,
                    encode_ms=encoded * encode_ms,
                    search_ms=search_ms,
                    hits=look_up(index, answer),
                    encoded=encoded,
                )
            )
        return answers

    def nearest(
        self, vectors: Float32[np.ndarray, "queries dim"], k: int = 10, wish: Wish = Wish()
    ) -> list[tuple[Hit, ...]]:
        """Find the k images most similar to each of some vectors that were embedded before.

        Args:
            vectors: Of length one, by a submodel of the index's encoder.
            k: Hits per vector; an index with fewer images returns all it has.
            wish: What may answer; nothing is known of images that vectors were made of.

        Raises:
            ValueError: If k is below 1 or the wish names a class that the index does not have.
        """
        check_question(self.encoder, self.index, k)
        if not len(vectors):
            return []
        questions = [Question(vector[np.newaxis], vectors[:0], "mean") for vector in vectors]
        finder = Finder(self.index, wish)
        own = [finder.left_out] * len(vectors)
        return [look_up(self.index, found) for found in finder.find(questions, own, k)]

    def _embed(
        self, asked: Sequence[Together], submodel: Submodel
    ) -> tuple[Float32[np.ndarray, "images dim"], float]:
        """Vectors of all images of some questions in order, and milliseconds for each encoded."""
        images = [image for question in asked for image in question.images]
        new = [at for at, image in enumerate(images) if not isinstance(image, Stored)]
        ids = np.array([image.id for image in images if isinstance(image, Stored)], dtype=np.int64)
        if not len(ids):
            return self._encode(images, submodel)
        vectors = np.empty((len(images), self.index.embeddings.shape[1]), dtype=np.float32)
        stored = np.setdiff1d(np.arange(len(images)), new)
        vectors[stored] = self.index.embeddings[self.index.rows_of(ids)]
        encode_ms = 0.0
        if new:
            vectors[new], encode_ms = self._encode([images[at] for at in new], submodel)
        return vectors, encode_ms

    def _encode(
        self, images: Sequence[Any], submodel: Submodel
    ) -> tuple[Float32[np.ndarray, "images dim"], float]:
        pixels = decode(self.encoder, images)
        start = perf_counter()
        vectors = embed(self.encoder, pixels, submodel)
        return vectors, 1000 * (perf_counter() - start) / len(images)

    def _name_of(self, image: ImageLike | Stored) -> str | None:
        if isinstance(image, Stored):
            return self.index.path_of(int(self.index.rows_of(np.array(image.id))))
        return name_of(image)


def _questions(
    asked: Sequence[Together], vectors: Float32[np.ndarray, "images dim"]
) -> list[Question]:
    """Give each question the vectors of its images."""
    questions, start = [], 0
    for each in asked:
        middle, end = start + len(each.like), start + len(each.images)
        questions.append(Question(vectors[start:middle], vectors[middle:end], each.by))
        start = end
    return questions


def full_of(encoder: Encoder) -> Submodel:
    """The submodel that embedded the index: all of the encoder, also where only a part is here."""
    config = encoder.config
    return Submodel.uniform(Granularity.XL, depth=config.depth, hidden_dim=config.hidden_dim)


def check_question(encoder: Encoder, index: IndexedImages, k: int) -> None:
    """Refuse what no index can answer, and an encoder that changed under its retriever."""
    index.check_encoder(encoder)  # training or loading can do that; checking is cheap
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def decode(
    encoder: Encoder, images: Sequence[ImageLike]
) -> UInt8[np.ndarray, "images height width 3"]:
    """Decode queries as the corpus was decoded.

    Raises:
        FileNotFoundError: If there is no file at a path.
        ValueError: If an image cannot be read; the message names it.
    """
    decoded = []
    for number, image in enumerate(images, start=1):
        try:
            decoded.append(encoder.preprocess.pixels(image))
        except ValueError as error:
            raise ValueError(f"{name_of(image) or f'query {number}'}: {error}") from error
    return np.stack(decoded)


def look_up(index: IndexedImages, found: Found) -> tuple[Hit, ...]:
    """Say which images were found."""
    names, labels = index.class_names, index.labels
    rows = index.rows_of(found.ids) if len(found.ids) else found.ids
    return tuple(
        Hit(
            rank=rank,
            id=int(number),
            path=index.path_of(row),
            score=float(score),
            label=names[labels[row]] if names and labels[row] >= 0 else None,
            twins=int(twins),
        )
        for rank, (number, score, twins, row) in enumerate(zip(*found, rows, strict=True), start=1)
    )


def name_of(image: ImageLike) -> str | None:
    """What to call a query: the path it was read from, if there is one."""
    if isinstance(image, (str, Path)):
        return str(image)
    name = getattr(image, "filename" if isinstance(image, Image.Image) else "name", None)
    return str(name) if name and isinstance(name, (str, Path)) else None
