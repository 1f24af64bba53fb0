"""`ImageIndex`: images embedded once, stored on disk, searched by vector."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from numpy import ndarray

from indexing.checks import IndexMismatchError, check_encoder
from indexing.compact import CompactReport, compact_index
from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from indexing.images import IndexedImages, describe_index
from indexing.merge import AddReport
from indexing.relocate import RelocateReport, relocate_index
from indexing.remove import RemoveReport, remove_images
from indexing.search.request import AUTO, KindRequest
from indexing.store.files import REMEDY, check_size
from indexing.store.folder import read_finished, read_manifest, way_back_to_whole
from indexing.store.manifest import Manifest
from indexing.store.rows import read_failures
from indexing.verification import VerifyReport, open_checked, verify_index
from indexing.write import add_images, build_index, built_on
from matvit import Encoder, Precision

__all__ = ["ImageIndex", "IndexMismatchError"]

Report = AddReport | RemoveReport | CompactReport | RelocateReport


class ImageIndex(IndexedImages):
    """Images embedded at full size, with cosine search: exact, or approximate if there are many.

    Every image has an id, a number that never changes while the index lives and is never given to
    another image. What is known about the images is inherited from `IndexedImages`.

    Make one with `build`, or open one with `open`. An index never changes: it stays at the
    generation it was opened at, whatever anybody does to the folder, so any number of threads may
    use it. `add`, `remove` and `compact` return the index of the new generation.

    Attributes:
        report: What the change that made this generation did, if `add`, `remove` or `compact`
            returned it; else None.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from matvit import load_encoder
        >>> folder, encoder = TemporaryDirectory(), load_encoder("matvit-tiny64")
        >>> for colour in ("red", "green", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(f"{folder.name}/{colour}.png")
        >>> index = ImageIndex.build(encoder, Corpus.open(folder.name), f"{folder.name}/index")
        >>> ids, scores = index.search(index.embeddings[1:2], k=1)
        >>> [index.path_of(row) for row in index.rows_of(ids[0])]
        ['green.png']
        >>> smaller = index.remove(paths=["green.png"])
        >>> (smaller.report.removed, len(smaller), len(index))
        (1, 2, 3)
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        device: str = "cpu",
        mmap: bool = False,
        report: Report | None = None,
    ) -> None:
        rows, searcher = open_checked(path, manifest, device=device, mmap=mmap)
        failures = read_failures(path, manifest.failure_files)
        super().__init__(
            path, manifest, rows.live_metadata(), rows.live_embeddings(), searcher, failures
        )
        self._manifest, self.report = manifest, report
        self._device, self._mmap = device, mmap

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        corpus: Corpus,
        path: str | Path,
        *,
        kind: str = AUTO,
        factory: str | None = None,
        max_memory: int | str | None = None,
        search_device: str = "auto",
        decoders: Decoders = Decoders(),
        precision: Precision = "auto",
        progress: bool = False,
    ) -> ImageIndex:
        """Embed all images of a corpus at full size and store them as a new index.

        An image that cannot be read is left out and listed in `failures`. What is stored is
        committed every 16,384 images. A build that is interrupted, killed or runs out of disk
        leaves an unfinished index, which does not open; the same call finishes it, and the result
        is that of an uninterrupted one. A build that stops before its first commit leaves nothing.

        Args:
            encoder: A whole encoder; it runs on the device where it lives.
            corpus: The images.
            path: Folder of the index; it must not exist, or be empty or unfinished.
            kind: Of search structure, one of `indexing.KINDS`; `"auto"` chooses by count,
                memory and device: Flat, which is exact, for up to 50,000 images on a CPU and a
                million on a GPU. Updates keep to it.
            factory: FAISS factory string instead of a kind.
            max_memory: Bytes that the structure may take, or a size such as `"4GB"`.
            search_device: `"cpu"` or `"cuda"`, where the index will be searched; `"auto"` for
                where it is built. It decides between kinds and is no promise: any machine opens
                the index, and searches it where `open` says.
            decoders: Who decodes, and how many images are embedded at a time.
            precision: In which numbers the encoder computes; see `matvit.embed`.
            progress: Show a progress bar on stderr.

        Raises:
            FileExistsError: If `path` holds anything else, such as a finished index.
            BlockingIOError: If another process is building there.
            IndexMismatchError: If it was begun by another encoder or preprocessing.
            ValueError: If no image could be read, the encoder is not whole or not finite, it was
                begun with another list of images, or the kind is unknown, needs more images or
                takes more memory than it may, or the device is unknown.
        """
        request = KindRequest.of(
            kind, factory, max_memory, built_on(encoder) if search_device == AUTO else search_device
        )
        build_index(
            encoder,
            corpus,
            Path(path),
            request=request,
            decoders=decoders,
            precision=precision,
            progress=progress,
        )
        return cls.open(path, device="cpu" if built_on(encoder) == "cpu" else "auto")

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: Encoder | None = None,
        *,
        device: str = "cpu",
        mmap: bool = False,
    ) -> ImageIndex:
        """Open an index and make sure that it is whole and can be searched.

        Checked are the size of every file, the hash of every file that is read whole, counts and
        ids, and that a sample of the images find themselves. An embedding file is hashed before
        the first row is taken from it. `verify` checks everything.

        Args:
            path: Folder of the index.
            encoder: If given, what it will be asked with; see `check_encoder`.
            device: Where FAISS searches: `"cpu"`, `"cuda"`, or `"auto"` for the GPU if FAISS sees
                one and the kind runs there.
            mmap: Leave the lists of an IVF kind on disk and read what a query visits, for an index
                larger than memory.

        Raises:
            FileNotFoundError: If there is no index at `path`.
            IndexMismatchError: If it was built by another encoder or preprocessing.
            ValueError: If it is damaged, unfinished or of another version; the message names the
                file, or says what to do. Also if the device cannot be had.
        """
        return cls._open(Path(path), encoder, device=device, mmap=mmap)

    @classmethod
    def _open(
        cls,
        path: Path,
        encoder: Encoder | None = None,
        *,
        device: str,
        mmap: bool,
        report: Report | None = None,
    ) -> ImageIndex:
        while True:
            manifest = read_finished(path)
            if encoder is not None:
                check_encoder(path, manifest, encoder)
            try:
                for file in manifest.searched_files:
                    check_size(path, file)
                return cls(path, manifest, device=device, mmap=mmap, report=report)
            except (FileNotFoundError, ValueError) as error:
                if read_manifest(path) != manifest:
                    continue  # a writer has meanwhile removed what we were opening
                if str(error).endswith(REMEDY) and (way := way_back_to_whole(path, manifest)):
                    raise ValueError(f"{error}{way}") from error
                raise

    def add(
        self,
        encoder: Encoder,
        corpus: Corpus,
        *,
        retry_failed: bool = False,
        remove_missing: bool = False,
        rehash: bool = False,
        decoders: Decoders = Decoders(),
        precision: Precision = "auto",
        progress: bool = False,
    ) -> ImageIndex:
        """Bring the index up to date with its corpus.

        Only files that are new, or whose size or time of change is another, are read; of these,
        only content that the index does not have is embedded. An image found under a new name
        keeps its id if its old name is gone, so a renamed folder costs no embedding. A file with
        other content than before is another image: it gets a new id, and the old one is removed.

        What is stored is committed every 16,384 images, but not searched before all of it is; an
        addition that was stopped goes on with the same call. An image that was removed, but whose
        file is still there, is new, unless it was to be forgotten.

        Args:
            encoder: The whole encoder that built the index.
            corpus: All images of the folder or files the index was built from.
            retry_failed: Read again what could not be read before, though it has not changed.
            remove_missing: Remove images that are not in `corpus`.
            rehash: Read every file, to find those that were replaced by others of the same size
                and time.
            decoders: Who decodes, and how many images are embedded at a time.
            precision: In which numbers the encoder computes; see `matvit.embed`.
            progress: Show a progress bar on stderr.

        Returns:
            The index as it is now; its `report` is an `AddReport`.

        Raises:
            IndexMismatchError: If the index was built by another encoder or preprocessing.
            BlockingIOError: If somebody else is writing.
            ValueError: If `corpus` is another one, names in it are shared, or no image would be
                left.
        """
        report = add_images(
            encoder,
            corpus,
            self.path,
            retry_failed=retry_failed,
            remove_missing=remove_missing,
            rehash=rehash,
            decoders=decoders,
            precision=precision,
            progress=progress,
        )
        return self._next(report)

    def remove(
        self,
        ids: Iterable[int] | Int64[ndarray, " ids"] = (),
        *,
        paths: Iterable[str] = (),
        forget: bool = False,
    ) -> ImageIndex:
        """Remove images: they are found no more from now on. `compact` gives back their space.

        Args:
            ids: Ids of images.
            paths: Names of images, or of some that could not be read, to list them no more.
            forget: Leave images of these names out whenever something is added; else those whose
                file is still there come back.

        Returns:
            The index as it is now; its `report` is a `RemoveReport`.

        Raises:
            KeyError: If one of them is not in the index; nothing is removed then.
            BlockingIOError: If somebody else is writing.
            ValueError: If none is named, or no image would be left.
        """
        numbers = [int(number) for number in ids]
        report = remove_images(self.path, numbers, paths, forget=forget)
        return self._next(report)

    def compact(self, *, progress: bool = False) -> ImageIndex:
        """Give back the space of what was removed, and join small shards.

        Whoever has the index open keeps what was opened. Ids and answers stay as they are.

        Returns:
            The index as it is now; its `report` is a `CompactReport`.

        Raises:
            BlockingIOError: If somebody else is writing.
            ValueError: If a file that would have to be copied is damaged.
        """
        report = compact_index(self.path, progress=progress)
        return self._next(report)

    def relocate(
        self, place: str | Path, *, rehash: bool = False, progress: bool = False
    ) -> ImageIndex:
        """Say where the images are now, after they were moved; nothing is embedded again.

        Every image has to be there under the name it had, and a thousand of them, evenly spread,
        are read to see whether their content is the one that was indexed.

        Args:
            place: What the index was built from, at its new place.
            rehash: Read all images rather than a thousand.
            progress: Show a progress bar on stderr.

        Returns:
            The index as it is now; its `report` is a `RelocateReport`.

        Raises:
            FileNotFoundError: If nothing is at `place`.
            BlockingIOError: If somebody else is writing.
            ValueError: If an image is not there or has other content; nothing is changed then.
        """
        report = relocate_index(self.path, place, rehash=rehash, progress=progress)
        return self._next(report)

    def verify(self, *, originals: bool = False, progress: bool = False) -> VerifyReport:
        """Read everything that is stored now and check it; see `indexing.verification`."""
        return verify_index(self.path, originals=originals, progress=progress)

    def info(self) -> dict[str, Any]:
        """Describe the index in plain JSON values."""
        return describe_index(self.path, self._manifest, self.failures)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the index is; unpickling opens whatever is there by then."""
        reopen = partial(type(self).open, device=self._device, mmap=self._mmap)
        return reopen, (self.path.absolute(),)

    def _next(self, report: Report) -> ImageIndex:
        """Open what a change has made of the index."""
        return ImageIndex._open(self.path, device=self._device, mmap=self._mmap, report=report)
