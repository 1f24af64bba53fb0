"""Images inside tar archives, in the layout of WebDataset: `key.jpg` beside `key.cls`."""

from __future__ import annotations

import posixpath
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from indexing.corpus.source import (
    IMAGE_SUFFIXES,
    FileStat,
    Listing,
    NamedSource,
    files_in,
    is_image_name,
)
from indexing.records import NO_LABEL
from matvit import FileContent, modified_ns, read_part

_CLASS_SUFFIX = ".cls"
_CLASS_BYTES = 256  # a longer one is no class
_NO_DATA = -1
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}


class TarArchives(NamedSource):
    """Images inside tar archives, in the order of the archives.

    Opening reads the headers once and keeps where each image begins, so that any of them can be
    read alone. Nothing is unpacked: names such as `train-0.tar/a/1.jpg` are what people are shown,
    not places on the disk.
    """

    kind = "tar"

    def __init__(self, root: Path) -> None:
        self._files = files_in(root, ".tar")
        self._mtimes = [modified_ns(file.stat()) for file in self._files]
        members = _Members()
        ends = []
        for file in self._files:
            members.add(file)
            ends.append(len(members.listing))
        if not ends[-1]:
            raise ValueError(
                f"no images in the tar archives of {root}; looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        self.root = root.resolve()
        self._ends = np.array(ends, dtype=np.int64)
        self._names = members.listing.names()
        self._starts = np.array(members.starts, dtype=np.int64)
        self._sizes = np.array(members.sizes, dtype=np.int64)
        self.labels, self.class_names = members.listing.classes(as_numbers=True)

    def stat(self, index: int) -> FileStat:
        """Return the size of the image and the time of the whole archive."""
        file = self._file(index)
        return FileStat(max(0, int(self._sizes[index])), modified_ns(file.stat()))

    def fetch(self, index: int) -> FileContent:
        """Read the image out of its archive."""
        file, size = self._file(index), int(self._sizes[index])
        if size == _NO_DATA:
            raise OSError("not a file of the archive but a link or a sparse file")
        number = int(bisect_right(self._ends, index))
        return read_part(file, int(self._starts[index]), size, self._mtimes[number])

    def _file(self, index: int) -> Path:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._files[bisect_right(self._ends, index)]


class _Members:
    """What the headers of some archives say about the images in them."""

    def __init__(self) -> None:
        self.listing = Listing()
        self.starts, self.sizes = array("q"), array("q")

    def add(self, file: Path) -> None:
        """Read the headers of one archive.

        A `.cls` file names the class of the images beside it that have the same key: the path up
        to the first dot of the file name.

        Raises:
            ValueError: If it is compressed, cut off, or not a tar archive.
        """
        key, label, first = "", NO_LABEL, len(self.listing)
        for name, member, archive in _members(file):
            folder, base = posixpath.split(name)
            if (its_key := posixpath.join(folder, base.split(".")[0])) != key:
                key, label, first = its_key, NO_LABEL, len(self.listing)
            if base.endswith(_CLASS_SUFFIX):
                label = self._class_of(member, archive)
                self.listing.relabel(first, label)
            elif is_image_name(base):
                path = f"{file.name}/{name}"  # archives may share names
                self.listing.add(path.encode(errors="surrogateescape"), label)
                self.starts.append(member.offset_data)
                plain = member.isreg() and not member.issparse()
                self.sizes.append(member.size if plain else _NO_DATA)

    def _class_of(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> int:
        stream = archive.extractfile(member) if member.isreg() else None
        text = b"" if stream is None else stream.read(_CLASS_BYTES + 1).strip()
        if not 0 < len(text) <= _CLASS_BYTES:
            return NO_LABEL
        return self.listing.number(text.decode(errors="replace"))


def _members(file: Path) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """Go through the files of an archive; hidden ones and folders are left out."""
    _check_plain(file)
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
                name = member.name.removeprefix("./")
                if not member.isdir() and not _is_hidden(name):
                    yield name, member, archive
            _check_end(archive)
    except (tarfile.TarError, OSError, EOFError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is at fault or the machine, not the archive
        raise ValueError(f"cannot read {file}: {error}; make the archive again") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive that is cut off between two files, where tarfile simply stops."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off or damaged after {archive.offset:,} bytes")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _check_plain(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is not a file; expected a tar archive")
    with file.open("rb") as stream:
        start = stream.read(8)
    for magic, name in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise ValueError(
                f"{file} is compressed ({name}), so that no image in it can be read alone; "
                "unpack it to a plain .tar first"
            )
