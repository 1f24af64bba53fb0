"""Searching an index with an image, through any submodel of the encoder that built it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, overload

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from indexing import ImageIndex
from matvit.cost import count_macs
from matvit.embed import Encoder, embed
from matvit.preprocess import ImageLike
from matvit.submodel import Granularity, Submodel


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that a search found.

    Attributes:
        rank: Place in the answer, from 1.
        id: Its number in the index.
        path: Its name in the index.
        score: Cosine of query and image, higher is better.
        label: Name of its class; None without one.
    """

    rank: int
    id: int
    path: str
    score: float
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hits(Sequence[Hit]):
    """The answer to one query: its hits, best first, and what they cost.

    Attributes:
        query: Path of the image asked with, as it was given; None for an image without a name.
        submodel: What embedded the query, as text.
        macs: Multiply-accumulates of embedding it.
        encode_ms: Milliseconds to embed the decoded query; in a batch, each query's share.
        search_ms: Milliseconds to search the index; in a batch, each query's share.
        hits: The hits.
    """

    query: str | None
    submodel: str
    macs: int
    encode_ms: float
    search_ms: float
    hits: tuple[Hit, ...]

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, in the stable shape of `matvit search --json`."""
        values = asdict(self)
        for hit in values["hits"]:
            del hit["label"]
        return {**values, "hits": list(values["hits"])}


class Retriever:
    """An index and the encoder that asks it.

    Holds no state of its own, so threads can search with different submodels at once.

    Args:
        encoder: The encoder that built the index, or a submodel extracted from it.
        index: The images to search.

    Raises:
        IndexMismatchError: If the index was built by another encoder or preprocessing.
    """

    def __init__(self, encoder: Encoder, index: ImageIndex) -> None:
        index.check_encoder(encoder)
        self.encoder = encoder
        self.index = index

    def search(
        self, image: ImageLike, submodel: Submodel | Granularity | str | None = None, k: int = 10
    ) -> Hits:
        """Find the k most similar images; see `search_batch`."""
        return self.search_batch([image], submodel, k)[0]

    def search_batch(
        self,
        images: Sequence[ImageLike],
        submodel: Submodel | Granularity | str | None = None,
        k: int = 10,
    ) -> list[Hits]:
        """Find the k most similar images of each query, all embedded together.

        Args:
            images: Paths, bytes of image files, or Pillow images.
            submodel: What embeds the queries, such as `"S"` or `"4xS,2xXL"`; None for the full
                encoder.
            k: Hits per query; an index with fewer images returns all it has.

        Returns:
            One answer per query, in order.

        Raises:
            FileNotFoundError: If there is no file at a path.
            ValueError: If an image cannot be read, the submodel is not one of the encoder's, or
                k is below 1.
            IndexMismatchError: If the encoder has changed since the index was built.
        """
        # Training or loading can change the weights under a retriever; checking is cheap.
        self.index.check_encoder(self.encoder)
        chosen = self.encoder.submodel(submodel)
        if not images:
            return []
        pixels = self._decode(images)
        start = perf_counter()
        vectors = embed(self.encoder, pixels, chosen)
        embedded = perf_counter()
        ids, scores = self.search_vectors(vectors, k)
        searched = perf_counter()
        return [
            Hits(
                query=_name(image),
                submodel=str(chosen),
                macs=count_macs(self.encoder.config, chosen),
                encode_ms=1000 * (embedded - start) / len(images),
                search_ms=1000 * (searched - embedded) / len(images),
                hits=self._hits(*answer),
            )
            for image, *answer in zip(images, ids, scores, strict=True)
        ]

    def warm_up(self, submodel: Submodel | Granularity | str | None = None) -> None:
        """Search once for nothing: the first search allocates memory and loads kernels."""
        self.search(Image.new("RGB", (64, 64)), submodel, k=1)

    def search_vectors(
        self, vectors: Float32[np.ndarray, "queries dim"], k: int = 10
    ) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        """Find the k most similar images of queries that are already embedded.

        Returns:
            Ids and scores, best first; `min(k, len(index))` columns.

        Raises:
            ValueError: If k is below 1, or the vectors have another dimension than the index.
        """
        return self.index.search(vectors, k)

    def _decode(self, images: Sequence[ImageLike]) -> UInt8[np.ndarray, "images height width 3"]:
        """Decode queries as the corpus was decoded."""
        decoded = []
        for number, image in enumerate(images, start=1):
            try:
                decoded.append(self.encoder.preprocess.pixels(image))
            except ValueError as error:
                raise ValueError(f"{_name(image) or f'query {number}'}: {error}") from error
        return np.stack(decoded)

    def _hits(
        self, ids: Int64[np.ndarray, " k"], scores: Float32[np.ndarray, " k"]
    ) -> tuple[Hit, ...]:
        """Look up what was found."""
        names = self.index.class_names
        found = zip(ids, scores, self.index.rows_of(ids), strict=True)
        return tuple(
            Hit(
                rank=rank,
                id=int(number),
                path=self.index.paths[row],
                score=float(score),
                label=names[label] if names and (label := self.index.labels[row]) >= 0 else None,
            )
            for rank, (number, score, row) in enumerate(found, start=1)
        )


def _name(image: ImageLike) -> str | None:
    """What to call a query: the path it was read from, if there is one."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")) or None
    return None if isinstance(image, bytes) else str(image)
