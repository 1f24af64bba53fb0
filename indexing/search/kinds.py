"""Kinds of search structure: which there are, what each costs in memory, which one suits.

    name        per vector, in bytes          answers
    Flat        4 dim + 8                     exact
    Flat16      2 dim + 8                     exact; float16 in memory
    HNSW        4 dim + 8 + 272               a graph of 32 neighbours; the fastest on a CPU
    IVFFlat     4 dim + 8                     some of the lists are searched
    IVFSQ8      dim + 8                       8 bits per coordinate
    IVFPQ       dim / 4 + 8                   a byte per 4 coordinates, rotated to suit (OPQ)
    IVFRaBitQ   dim / 8 + 16                  a bit per coordinate

The 8 bytes are the id. IVF kinds add 4 dim + 8 bytes per list, IVFPQ and IVFRaBitQ a rotation of
4 dim^2 bytes, IVFPQ a codebook of 1024 dim bytes. Quantised kinds only propose: the scores come
from the float16 embeddings on disk, which the operating system keeps in whatever memory is left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import faiss

from indexing.search.request import AUTO, KindRequest

FACTORY = "factory"
"""Name of the kind that an expert described by a FAISS factory string."""

ROWS_PER_LIST = 39
"""Fewer vectors per list than this, and FAISS warns that k-means has too little to go by."""

_MAX_LISTS = 1 << 16
_PQ_CENTROIDS = 256
_ID_BYTES = 8
# What FAISS searches on a GPU: bytes of a product code, and coordinates for each of them.
_GPU_PQ_BYTES = {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96}
_GPU_PQ_DIMS = {1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32}
_GPU_SCALARS = {faiss.ScalarQuantizer.QT_8bit, faiss.ScalarQuantizer.QT_fp16}
_HNSW_LINKS = 32
_FACTORY = re.compile(
    r"(?:Flat|SQfp16|SQ8"
    r"|HNSW\d{1,3}(?:,Flat|,SQfp16|,SQ8)?"
    r"|(?:(?:OPQ\d{1,4}(?:_\d{1,5})?|RR\d{1,5}),)?IVF\d{1,7},"
    r"(?:Flat|SQfp16|SQ8|SQ6|SQ4|PQ\d{1,4}(?:x[4-8])?|RaBitQ))"
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A search structure, as the FAISS factory builds it for a certain number of vectors.

    Attributes:
        name: What people call it; `"factory"` if the string is all they gave.
        factory: String for `faiss.index_factory`.
    """

    name: str
    factory: str

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared with every query."""
        return self.factory in ("Flat", "SQfp16")

    @property
    def is_ivf(self) -> bool:
        """Whether vectors lie in lists, of which a search visits some."""
        return "IVF" in self.factory

    @property
    def min_images(self) -> int:
        """Fewest images it can be trained on."""
        if not self.is_ivf:
            return 1
        lists = int(re.findall(r"IVF(\d+)", self.factory)[0])
        bits = re.search(r"PQ\d+(?:x(\d+))?$", self.factory)
        # A product quantiser makes 256 centroids (at 8 bits) whatever the number of vectors.
        centroids = 1 << int(bits[1] or 8) if bits else 1
        wanted = ROWS_PER_LIST if self.name != FACTORY else 1
        return max(lists * wanted, centroids)


def named_kind(name: str, images: int, dim: int, device: str = "cpu") -> Kind:
    """Return a kind by its name, sized for so many vectors.

    Args:
        name: One of `KINDS`.
        images: Vectors to hold.
        dim: Of the vectors.
        device: `"cpu"` or `"cuda"`: product codes that a GPU searches have other lengths.

    Raises:
        ValueError: If the name is unknown or there are too few images for it.
    """
    if name not in _NAMED:
        raise ValueError(f"unknown kind {name!r}; known: {AUTO}, {', '.join(_NAMED)}")
    return _checked(Kind(name=name, factory=_NAMED[name](images, dim, device)), images)


def factory_kind(factory: str, images: int, dim: int) -> Kind:
    """Accept an expert's FAISS factory string.

    Only structures that compute cosines of unit vectors and whose files can be checked before
    FAISS reads them are accepted: a centring transform such as PCA changes inner products, and
    some others make FAISS open further files.

    Raises:
        ValueError: If it is none of these, FAISS does not understand it, or there are too few
            images for it.
    """
    if not accepts_factory(factory):
        raise ValueError(
            f"factory string {factory!r} is not accepted; use Flat, SQfp16, SQ8, HNSW32, "
            "HNSW32,SQ8, IVF1024,Flat, IVF1024,SQ8, OPQ64,IVF1024,PQ64, RR256,IVF1024,RaBitQ "
            "or the like: inner product only, ids are added by this program"
        )
    kind = _checked(Kind(name=FACTORY, factory=factory), images)
    try:
        empty_index(kind, dim)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"FAISS cannot make {factory!r} for vectors of dimension {dim}: "
            f"{str(error).splitlines()[0][-200:]}"
        ) from None
    return kind


def accepts_factory(factory: str) -> bool:
    """Whether a factory string is one of those that an index of ours can be made by."""
    return _FACTORY.fullmatch(factory) is not None


def choose_kind(
    images: int, dim: int, max_memory_bytes: int | None = None, device: str = "cpu"
) -> Kind:
    """Choose a kind by count, memory and device.

    The first of these that fits into the memory, from where the ladder is entered:

        up to 50,000 images (a GPU: 1 million)   Flat, Flat16
        up to 1 million                          HNSW (CPU only), IVFFlat
        up to 20 million                         IVFSQ8
        more                                     IVFPQ, IVFRaBitQ (CPU only)

    Args:
        images: Vectors to hold.
        dim: Of the vectors.
        max_memory_bytes: What the structure may take; None for no limit.
        device: `"cpu"` or `"cuda"`, where it will be searched.

    Raises:
        ValueError: If nothing fits; the message names the smallest.
    """
    on_gpu = device == "cuda"
    limits = _MOST_IMAGES | ({"Flat": _FLAT_ON_GPU, "Flat16": _FLAT_ON_GPU} if on_gpu else {})
    kinds = _kinds_for(images, dim, device)
    wanted = [kind for kind in kinds if images <= limits.get(kind.name, images)]
    for kind in wanted:
        if max_memory_bytes is None or memory_bytes(kind, images, dim) <= max_memory_bytes:
            return kind
    smallest = smallest_kind(images, dim, device)
    raise ValueError(
        f"no kind of index holds {images:,} images in {max_memory_bytes:,} bytes; the smallest, "
        f"{smallest.name}, needs {memory_bytes(smallest, images, dim):,}"
    )


def smallest_kind(images: int, dim: int, device: str = "cpu") -> Kind:
    """Return the named kind that takes the least memory for so many vectors."""
    kinds = _kinds_for(images, dim, device)
    return min(kinds, key=lambda kind: memory_bytes(kind, images, dim))


def _kinds_for(images: int, dim: int, device: str) -> list[Kind]:
    """Kinds by name that a device searches and so many vectors can train, as `KINDS` has them."""
    names = [name for name in _NAMED if not (device == "cuda" and name in CPU_ONLY)]
    kinds = [Kind(name=name, factory=_NAMED[name](images, dim, device)) for name in names]
    return [kind for kind in kinds if kind.min_images <= images]


def memory_bytes(kind: Kind, images: int, dim: int) -> int:
    """Bytes that a structure takes once all images are in it, in memory as on disk.

    The table at the top of this file, and its fixed parts; the file itself is within 1 % of it.
    """
    index = empty_index(kind, dim)  # owns what `split` returns
    outer, inner = split(index)
    fixed = 0 if outer is None else 4 * outer.d_in * outer.d_out
    if kind.is_ivf:
        fixed += inner.nlist * (4 * inner.d + _ID_BYTES)
        codebook = getattr(inner, "pq", None)
        fixed += 0 if codebook is None else 4 * codebook.ksub * inner.d
    if kind.is_ivf:
        per_vector = inner.code_size
    elif isinstance(inner, faiss.IndexHNSW):
        storage = faiss.downcast_index(inner.storage)
        links = inner.hnsw.nb_neighbors(1)  # type: ignore[attr-defined]
        per_vector = storage.sa_code_size() + _graph_bytes(links)
    else:
        per_vector = inner.sa_code_size()
    return int(fixed + images * (per_vector + _ID_BYTES))


def empty_index(kind: Kind, dim: int) -> faiss.Index:
    """Make the FAISS index of a kind, untrained and without vectors."""
    return faiss.index_factory(dim, kind.factory, faiss.METRIC_INNER_PRODUCT)


def split(index: faiss.Index) -> tuple[Any, Any]:  # the stubs of FAISS lack most members
    """Split an index into the rotation before it, or None, and what holds the vectors.

    Neither owns its memory: the caller keeps `index` as long as the parts.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))  # type: ignore[attr-defined]
        return rotation, faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexIDMap):
        return None, faiss.downcast_index(index.index)
    return None, index


def list_count(images: int) -> int:
    """Lists of an IVF index: the power of two at or below 4 sqrt(images), each worth training."""
    wanted = min(4 * math.isqrt(images), images // ROWS_PER_LIST, _MAX_LISTS)
    return 1 << max(wanted, 1).bit_length() - 1


def _pq_bytes(dim: int, device: str) -> int:
    """Bytes of a product code: the largest divisor of the dimension up to a quarter of it.

    For a GPU the largest that it searches, if there is one.
    """
    counts = [count for count in range(max(dim // 4, 1), 0, -1) if dim % count == 0]
    fit = [count for count in counts if device == "cuda" and _pq_runs_on_gpu(dim, count)]
    return (fit or counts)[0]


def _pq_runs_on_gpu(dim: int, count: int) -> bool:
    """Whether FAISS searches product codes of so many bytes on a GPU."""
    return count in _GPU_PQ_BYTES and dim % count == 0 and dim // count in _GPU_PQ_DIMS


def runs_on_gpu(kind: Kind, dim: int) -> bool:
    """Whether FAISS can copy a kind to a GPU."""
    index = empty_index(kind, dim)
    _, inner = split(index)
    if isinstance(inner, faiss.IndexIVFPQ):
        return inner.pq.nbits == 8 and _pq_runs_on_gpu(inner.d, inner.pq.M)
    if isinstance(inner, faiss.IndexIVFScalarQuantizer):
        return inner.sq.qtype in _GPU_SCALARS
    if isinstance(inner, faiss.IndexScalarQuantizer):
        return inner.sq.qtype == faiss.ScalarQuantizer.QT_fp16
    return isinstance(inner, (faiss.IndexFlat, faiss.IndexIVFFlat))


def _graph_bytes(links: int) -> float:
    """Bytes per vector of an HNSW graph: 2M links below, M above for one in M, and two counters."""
    return 4 * (2 * links + links / (links - 1)) + 12


def _checked(kind: Kind, images: int) -> Kind:
    if images < kind.min_images:
        raise ValueError(
            f"kind {kind.name} ({kind.factory}) needs at least {kind.min_images:,} images, there "
            f"are {images:,}; use Flat, which is exact and fast for so few"
        )
    return kind


def _ivfpq(images: int, dim: int, device: str) -> str:
    count = _pq_bytes(dim, device)
    return f"OPQ{count},IVF{list_count(images)},PQ{count}"


_NAMED: dict[str, Callable[[int, int, str], str]] = {
    "Flat": lambda *_: "Flat",
    "Flat16": lambda *_: "SQfp16",
    "HNSW": lambda *_: f"HNSW{_HNSW_LINKS},Flat",
    "IVFFlat": lambda images, *_: f"IVF{list_count(images)},Flat",
    "IVFSQ8": lambda images, *_: f"IVF{list_count(images)},SQ8",
    "IVFPQ": _ivfpq,
    "IVFRaBitQ": lambda images, dim, _: f"RR{dim},IVF{list_count(images)},RaBitQ",
}

KINDS = tuple(_NAMED)
"""Names of kinds, in the order in which `auto` considers them."""

CPU_ONLY = ("HNSW", "IVFRaBitQ")
"""Kinds that FAISS cannot search on a GPU."""

_MILLION = 1_000_000
_FLAT_ON_GPU = _MILLION
_MOST_IMAGES = {
    "Flat": 50_000,
    "Flat16": 50_000,
    "HNSW": _MILLION,
    "IVFFlat": _MILLION,
    "IVFSQ8": 20 * _MILLION,
}
"""Up to how many images `auto` takes a kind; the others have no limit."""


class Resolved(NamedTuple):
    """A kind, and why it is not what was asked for; None if it is."""

    kind: Kind
    note: str | None


def resolve(request: KindRequest, images: int, dim: int) -> Kind:
    """Size what was asked for.

    Raises:
        ValueError: If the kind is unknown, there are too few images for it, or it takes more
            memory than it may.
    """
    most = request.max_memory_bytes
    if request.factory is not None:
        kind = factory_kind(request.factory, images, dim)
    elif request.kind == AUTO:
        return choose_kind(images, dim, most, request.device)
    else:
        kind = named_kind(request.kind, images, dim, request.device)
    if most is not None and (needed := memory_bytes(kind, images, dim)) > most:
        raise ValueError(
            f"kind {kind.name} ({kind.factory}) needs {needed:,} bytes for {images:,} images, "
            f"more than the {most:,} it may take; allow more, or use another kind or auto"
        )
    return kind


def resolve_again(request: KindRequest, images: int, dim: int) -> Resolved:
    """Size what was asked for, or what comes nearest if there are too few or too many images now.

    An update is not refused for it: what is chosen instead is what `auto` would be within the
    same memory, or the smallest kind where nothing fits any more.
    """
    try:
        return Resolved(resolve(request, images, dim), None)
    except ValueError as error:
        reason = str(error)
    try:
        kind = choose_kind(images, dim, request.max_memory_bytes, request.device)
    except ValueError:
        kind = smallest_kind(images, dim, request.device)
    return Resolved(kind, f"{kind.name} instead of {request.name}: {reason}")
