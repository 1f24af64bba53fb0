"""Images inside tar archives, and their classes in files beside them."""

from __future__ import annotations

import json
import posixpath
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexing.corpus.selection import Selection, Sieve, suffix_of
from indexing.corpus.source import Classes, FileStat, NamedSource, Names, files_in, told_apart
from indexing.records import NO_LABEL
from matvit import FileContent, modified_ns, read_part, readable_suffixes

_CLASS_BYTES = 256  # a longer one is no class
_JSON_BYTES = 1 << 16
_JSON_FIELDS = ("label", "class", "cls", "class_name")
_AT_A_TIME = 1 << 16
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

    The class of an image is in a file beside it: `1.cls`, or a `label` in `1.json` if there is no
    `.cls` file in any of the archives. Whose it is, is said by all of its name but `.cls`, as for
    `IMG.2020.01.jpg` and `IMG.2020.01.cls`, or, as WebDataset has it, by the name up to the first
    dot, as for `1.left.jpg` and `1.cls`, unless that is the class of an image `1.jpg`.
    """

    kind = "tar"

    def __init__(self, root: Path, selection: Selection = Selection()) -> None:
        self.selection, sieve = selection, Sieve(selection)
        self._files = files_in(root, ".tar", sieve)
        self._mtimes = [modified_ns(file.stat()) for file in self._files]
        members = _Members(sieve, labels=selection.labels)
        ends = []
        for file in self._files:
            members.add(file)
            ends.append(len(members.starts))
        if not ends[-1]:
            raise ValueError(
                f"no images in the tar archives of {root}; looked for "
                f"{', '.join(sorted(readable_suffixes()))}"
            )
        self.root = root.resolve()
        self._ends = np.array(ends, dtype=np.int64)
        self._names = pa.concat_arrays(members.names)
        if selection.rules > 1:
            self._names = told_apart(self._names)
        self._starts = np.array(members.starts, dtype=np.int64)
        self._sizes = np.array(members.sizes, dtype=np.int64)
        self.labels, self.class_names = members.classes()
        self.left_out = sieve.left_out()

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
    """What the headers of some archives say about the images in them.

    Args:
        sieve: Says which files are images that are wanted.
        labels: Whether to look for classes.

    Attributes:
        names: Of the images in each archive.
        starts: Where the data of each image begins in its archive.
        sizes: How many bytes it has.
    """

    def __init__(self, sieve: Sieve, *, labels: bool) -> None:
        self.names: list[pa.LargeBinaryArray] = []
        self.starts, self.sizes = array("q"), array("q")
        self._sieve, self._entered = sieve, {"": True}
        self._beside = [_Beside(".cls"), _Beside(".json")] if labels else []

    def add(self, file: Path) -> None:
        """Read the headers of one archive.

        Raises:
            ValueError: If it is compressed, cut off, or not a tar archive, or if it is not clear
                which class an image has.
        """
        names = Names()
        beside = {each.suffix: each for each in self._beside}
        for name, member, archive in _members(file):
            folder, base = posixpath.split(name)
            path = f"{file.name}/{name}"  # archives may share names
            if not self._enters(folder):
                continue
            if (labels := beside.get(suffix_of(base))) is not None:
                if not labels.read(path, member, archive):
                    self._sieve.pass_over(base)
            elif self._sieve.takes(path, base):
                names.add(path.encode(errors="surrogateescape"))
                self.starts.append(member.offset_data)
                plain = member.isreg() and not member.issparse()
                self.sizes.append(member.size if plain else _NO_DATA)
        self.names.append(names.array())
        for each in self._beside:
            self._count(each.suffix, each.match(self.names[-1], file))

    def classes(self) -> tuple[NDArray[np.int64] | None, list[str] | None]:
        """Class of each image, and what the classes are called; None if there are none."""
        chosen = None
        for each in self._beside:
            if chosen is not None:
                self._count(each.suffix, each.matched)
            elif each.matched:
                chosen = each
        if chosen is None:
            return None, None
        labels = np.concatenate(chosen.labels)
        return chosen.classes.ordered(labels, as_numbers=True)

    def _count(self, suffix: str, unused: int) -> None:
        for _ in range(unused):
            self._sieve.pass_over(f"a{suffix}")

    def _enters(self, folder: str) -> bool:
        """Whether a folder of an archive, and all that it is in, holds what is wanted."""
        if folder not in self._entered:
            above = posixpath.dirname(folder)
            inside = above == folder or self._enters(above)
            self._entered[folder] = inside and self._sieve.enters(folder)
        return self._entered[folder]


class _Beside:
    """The files of one kind that name the classes of the images beside them.

    Args:
        suffix: Ending of such files.

    Attributes:
        suffix: Ending of such files.
        classes: Those that they name.
        labels: Number of the class of each image, archive by archive.
        matched: How many such files were used.
    """

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.classes = Classes()
        self.labels: list[NDArray[np.int64]] = []
        self.matched = 0
        self._forget()

    def read(self, path: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> bool:
        """Read the class in a file; False if there is none in it."""
        most = _JSON_BYTES if self.suffix == ".json" else _CLASS_BYTES
        stream = archive.extractfile(member) if member.isreg() else None
        try:
            data = b"" if stream is None else stream.read(most + 1).strip()
        except tarfile.TarError:  # it is cut off, as whoever looks for the next one will say
            return False
        name = _class_in_json(data) if self.suffix == ".json" else data.decode(errors="replace")
        if len(data) > most or not 0 < len(name := name.strip()) <= _CLASS_BYTES:
            return False
        stem = path[: -len(self.suffix)]
        self._stems.add(stem.encode(errors="surrogateescape"))
        self._numbers.append(self.classes.number(name))
        return True

    def match(self, images: pa.LargeBinaryArray, file: Path) -> int:
        """Find the class of each image of an archive.

        A class belongs to images by all of their name but the ending, and, if there is no dot in
        the name of its own file, by the part of their name before the first dot.

        Args:
            images: Their names.
            file: The archive.

        Returns:
            How many of the files name no image.

        Raises:
            ValueError: If it is not clear which class an image has.
        """
        stems, numbers = self._stems.array(), np.array([*self._numbers, NO_LABEL])
        self._forget()
        self._refuse_two(stems, numbers[_places(stems, stems)], numbers[:-1], file)
        whole, key = _places(images, stems, _stem), _places(images, stems, _key)
        self._refuse_two(images, numbers[whole], numbers[key], file)
        owned, used = np.zeros((2, len(numbers)), dtype=bool)  # the last one is of no file
        owned[whole[whole >= 0]] = True
        for row in np.flatnonzero((whole < 0) & owned[key]):
            raise _unclear(file, images[row], f"the {self.suffix} file it could have is of another")
        found = np.where(whole >= 0, whole, key)
        used[found] = True
        self.labels.append(numbers[found])
        self.matched += int(used[:-1].sum())
        return int((~used[:-1]).sum())

    def _refuse_two(
        self,
        names: pa.LargeBinaryArray,
        one: NDArray[np.int64],
        other: NDArray[np.int64],
        file: Path,
    ) -> None:
        """Refuse an image of which two files say different things."""
        for row in np.flatnonzero((one != NO_LABEL) & (other != NO_LABEL) & (one != other)):
            classes = [self.classes.name(int(number[row])) for number in (one, other)]
            said = f"two {self.suffix} files could be meant, {classes[0]!r} and {classes[1]!r}"
            raise _unclear(file, names[row], said)

    def _forget(self) -> None:
        """Begin another archive."""
        self._stems, self._numbers = Names(), array("q")


def _places(
    names: pa.LargeBinaryArray,
    among: pa.LargeBinaryArray,
    part: Callable[[bytes], bytes] = bytes,
) -> NDArray[np.int64]:
    """Where a part of each name stands among others, -1 if it does not."""
    places = np.full(len(names), -1, dtype=np.int64)
    for start in range(0, len(names) if len(among) else 0, _AT_A_TIME):
        few = [part(name) for name in names.slice(start, _AT_A_TIME).to_pylist()]
        found = pc.index_in(pa.array(few, pa.large_binary()), value_set=among)
        places[start : start + len(few)] = found.fill_null(-1)
    return places


def _unclear(file: Path, name: pa.LargeBinaryScalar, why: str) -> ValueError:
    return ValueError(
        f"{file} does not say clearly which class {name.as_py().decode(errors='replace')} has: "
        f"{why}; rename or exclude one of them, or go on without labels"
    )


def _stem(path: bytes) -> bytes:
    """All of a name but its ending."""
    return path[: path.rindex(b".")]


def _key(path: bytes) -> bytes:
    """A name up to the first dot after its folders: what WebDataset goes by."""
    return path[: path.index(b".", path.rindex(b"/") + 1)]


def _class_in_json(data: bytes) -> str:
    """Find the class in a JSON object: a word or a whole number; nothing if there is none."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    for field in _JSON_FIELDS if isinstance(values, dict) else ():
        if isinstance(value := values.get(field), (str, int)):
            return str(value).lower() if isinstance(value, bool) else str(value)
    return ""


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
