"""Adopting vectors: an index of ours from those that somebody has, without embedding anything.

The images are read, since an index knows their names, sizes and hashes; the vectors are taken as
they are. Before that a sample of the images is embedded, and has to give the very vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16, Float32, Int64
from numpy import ndarray

from indexing.changes import corpus_names, refuse_shared_names
from indexing.checks import check_whole
from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from indexing.given import GivenVectors
from indexing.search.request import KindRequest
from indexing.store.folder import read_finished
from indexing.write import build_index, built_on
from matvit import Encoder, embed

_AS_NEAR = 1e-3
"""Twins among the sampled images may be as near as an image itself, to so much."""


@dataclass(frozen=True, kw_only=True)
class AdoptReport:
    """What an adoption found.

    Attributes:
        images: In the index.
        failed: Images that have a vector and could not be read.
        without_vector: Images without a vector; an addition embeds them.
        without_image: Vectors whose image is not there; they are left out.
        sampled: Images that were embedded to be compared with their vectors.
        cosine: The lowest of them.
    """

    images: int
    failed: int
    without_vector: int
    without_image: int
    sampled: int
    cosine: float


def adopt_index(
    encoder: Encoder,
    given: GivenVectors,
    corpus: Corpus,
    path: Path,
    *,
    request: KindRequest | None = None,
    sample: int = 64,
    min_cosine: float = 0.95,
    decoders: Decoders = Decoders(),
    progress: bool = False,
) -> AdoptReport:
    """Make an index of vectors that an encoder has given before, or finish doing so.

    Args:
        encoder: A whole encoder, the one that the vectors are from.
        given: The vectors. With names, these are the paths of the images below the root of the
            corpus, or whole paths; without, they are in the order of the corpus.
        corpus: The images.
        path: Folder of the index; see `ImageIndex.build`.
        request: What kind of search structure is wanted; None for what suits their number.
        sample: How many images to embed and compare, evenly spread.
        min_cosine: That each of these must have with its vector. Others scale and crop images by
            other code, which costs a little.
        decoders: Who decodes the images.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: If the vectors have another dimension than the encoder's, do not belong to the
            images, or are not what the encoder gives for them.
    """
    check_whole(encoder)
    if given.dim != encoder.config.embed_dim:
        raise ValueError(
            f"the vectors have dimension {given.dim}, encoder {encoder.name} gives "
            f"{encoder.config.embed_dim}; name the encoder that they are from"
        )
    rows = _rows_of_images(given, corpus)
    with_vector = np.flatnonzero(rows >= 0)
    chosen = corpus.subset(with_vector)
    compared = _compare(encoder, given, chosen, rows[with_vector], sample, min_cosine, decoders)

    row_at = np.full(len(corpus.source), -1, dtype=np.int64)
    row_at[chosen.positions] = rows[with_vector]

    def vectors_at(positions: Int64[ndarray, " images"]) -> Float16[ndarray, "images dim"]:
        return given.take(row_at[positions]).astype(np.float16)

    build_index(
        encoder,
        chosen,
        path,
        request=request or KindRequest(device=built_on(encoder)),
        decoders=decoders,
        given=vectors_at,
        progress=progress,
    )
    counts = read_finished(path).counts
    return AdoptReport(
        images=counts.images,
        failed=counts.failures,
        without_vector=len(corpus) - len(with_vector),
        without_image=len(given) - len(with_vector),
        sampled=len(compared),
        cosine=float(compared.min()),
    )


def _rows_of_images(given: GivenVectors, corpus: Corpus) -> Int64[ndarray, " images"]:
    """Which vector each image of a corpus has; -1 for none.

    Raises:
        ValueError: If that cannot be told, or no image has one.
    """
    if given.names is None:
        if len(given) != len(corpus):
            raise ValueError(
                f"there are {len(given):,} vectors for {len(corpus):,} images in {corpus.root}, so "
                "their order says nothing; name their images in a table (--table)"
            )
        return np.arange(len(corpus))
    names = pc.replace_substring_regex(given.names, r"^\./", "")
    root = f"{corpus.root}/"
    below = pc.starts_with(names, root)
    names = pc.if_else(below, pc.utf8_slice_codeunits(names, len(root)), names)
    refuse_shared_names(names, "vectors")
    images = corpus_names(corpus)
    found = pc.fill_null(pc.index_in(images, value_set=names.cast(images.type)), -1)
    rows = np.from_dlpack(found.cast(pa.int64()))
    if not (rows >= 0).any():
        raise ValueError(
            f"none of the {len(given):,} vectors is named after an image in {corpus.root}: the "
            f"first is {given.names[0].as_py()!r:.200}, the first image {corpus.name(0)!r:.200}"
        )
    return rows


def _compare(
    encoder: Encoder,
    given: GivenVectors,
    corpus: Corpus,
    rows: Int64[ndarray, " images"],
    sample: int,
    min_cosine: float,
    decoders: Decoders,
) -> Float32[ndarray, " sampled"]:
    """Embed some images, and return their cosines with the vectors that they are said to have.

    Raises:
        ValueError: If one is below `min_cosine`, or is nearer to the vector of another.
    """
    places = np.unique(np.linspace(0, len(corpus) - 1, max(1, sample)).astype(np.int64))
    batches = list(corpus.subset(places).decode(encoder.preprocess, decoders))
    read = places[np.concatenate([batch.rows for batch in batches])]
    if not len(read):
        raise ValueError(f"none of {len(places)} sampled images in {corpus.root} could be read")
    pixels = np.concatenate([batch.pixels for batch in batches])
    found = embed(encoder, pixels, precision="float32")
    cosines = found @ given.take(rows[read]).T
    own: Float32[ndarray, " sampled"] = cosines.diagonal()
    wrong = np.flatnonzero((own < min_cosine) | (own < cosines.max(axis=1) - _AS_NEAR))
    if len(wrong):
        worst = wrong[own[wrong].argmin()]
        raise ValueError(
            f"encoder {encoder.name} does not give these vectors: of {len(read)} sampled images "
            f"{len(wrong)} have others, such as {corpus.name(int(read[worst]))} with a cosine of "
            f"{own[worst]:.3f} (wanted {min_cosine}, and the nearest of all; the median is "
            f"{np.median(own):.3f}); name the encoder that they are from, and see whether vectors "
            "and images have the same order"
        )
    return own
