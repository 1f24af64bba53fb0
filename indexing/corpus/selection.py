"""Which files of a place are taken as images, and what is left out there, by kind.

An image is known by its ending. Hidden files and folders are left out, and so are the folders in
which desktops and network drives keep thumbnails and what was deleted. Patterns of the user take
or leave more.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from matvit import readable_suffixes

JUNK = (
    "@eaDir", "#recycle", "#snapshot", "@tmp", "@sharebin",  # Synology
    "@Recycle", "@Recently-Snapshot", ".@__thumb", "@__thumb",  # QNAP
    "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information",  # Windows
    "__MACOSX", "Network Trash Folder", ".Trashes", ".thumbnails",
    ".Trash", ".Trash-*", "lost+found",
)  # fmt: skip
"""Folders of thumbnails and of what was deleted, which nobody means."""

_PICTURES = frozenset(
    f".{ending}"
    for ending in (  # noqa: SIM905 -- three times as long as a list
        "heic heif hif heics heifs avif avifs jxl jxr wdp hdp bpg jls j2k j2c jpc jpf jpx jpm "
        "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw orf pef ptx "
        "raf raw rw2 rwl sr2 srf srw x3f "
        "psd psb xcf kra ora clip ai eps ps svg svgz pdf indd afphoto cdr sketch emf wmf "
        "exr hdr dpx cin tga pcx sgi xbm xpm dds fits fit dcm icns cur pict pct djvu "
        "mp4 mov m4v avi mkv webm mts m2ts ts 3gp 3g2 mpg mpeg wmv flv vob ogv insv lrv "
        "zip rar 7z tar gz tgz bz2 tbz2 xz txz zst parquet arrow tfrecord h5 hdf5 npz lmdb"
    ).split()
)
"""Endings of pictures, videos, and what may hold some."""

SUFFIXES_OF_RULES_1 = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".ico"}
)

_NAMED = 20
_ENDING = re.compile(r"\.[a-z0-9_+-]{1,10}")
_NO_ENDING, _ODD_ENDING, _FOLDER, _MORE = "no ending", "odd endings", "folder", "more"

Kinds = dict[str, Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]]


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a place holds besides the images that are taken.

    Attributes:
        formats: Pictures, videos and archives that cannot be read, by ending.
        others: Files that are nothing of that, by ending, and folders nobody looks into.
        folders: Folders of thumbnails and of deleted files, by name.
        excluded: Images and folders that patterns leave out.
    """

    formats: Kinds = {}
    others: Kinds = {}
    folders: Kinds = {}
    excluded: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0

    def in_words(self) -> list[str]:
        """One sentence for each kind of thing that is left out, without a full stop."""
        told = [
            (self.formats, "file of a format", "files of formats", "that cannot be read left out"),
            (self.folders, "folder", "folders", "of thumbnails or deleted files left out"),
            (self.others, "other", "others", "passed over"),
        ]
        sentences = []
        for kinds, one, many, done in told:
            if count := sum(kinds.values()):
                named = ", ".join(f"{kind} {number:,}" for kind, number in kinds.items())
                sentences.append(f"{count:,} {one if count == 1 else many} {done}: {named}")
        if self.excluded:
            sentences.append(f"{self.excluded:,} left out by patterns")
        return sentences


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to take of a place; decided when an index is built, and kept when it is updated.

    A pattern without a slash is compared with the name of every file and folder, one with slashes
    with the path from the root on; what it says of a folder goes for all in it. `*` and `?` stop
    at slashes, `**` does not. Large and small letters are the same.

    Attributes:
        include: Patterns; if there are any, only what one of them names is taken. A folder of
            thumbnails or deleted files is taken only if one names it.
        exclude: Patterns of what is left out.
        labels: Whether images have classes.
        rows: Whether images in Parquet files are named by file and row; None to decide by whether
            their own names tell them apart.
        rules: By which rules a place is listed: 2, or 1 for how it was listed before there were
            selections, to finish what was begun then.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels: bool = True
    rows: bool | None = None
    rules: Literal[1, 2] = 2

    @classmethod
    def of(
        cls, include: Iterable[str] | None, exclude: Iterable[str] | None, *, labels: bool
    ) -> Selection:
        """Make one from what a caller wrote.

        Raises:
            ValueError: If a pattern is empty or a word stands where a list of them should.
        """
        for name, patterns in (("include", include), ("exclude", exclude)):
            if isinstance(patterns, str):
                raise ValueError(f"{name} must be a list of patterns, got {patterns!r}")
        selection = cls(include=tuple(include or ()), exclude=tuple(exclude or ()), labels=labels)
        for pattern in (*selection.include, *selection.exclude):
            try:
                if pattern.strip("/") and _expression([pattern]):
                    continue
            except re.error:
                pass
            raise ValueError(f"{pattern!r} is no pattern; write something such as '*.gif'")
        return selection


class Sieve:
    """Takes or leaves the files of a place one by one, and counts what it leaves.

    Args:
        selection: What to take.
    """

    def __init__(self, selection: Selection) -> None:
        self._include = _expression(selection.include)
        self._exclude = _expression(selection.exclude)
        self._images = readable_suffixes()
        self._junk = _JUNK
        if selection.rules == 1:
            self._images, self._junk = SUFFIXES_OF_RULES_1, re.compile("(?!)")
        self._formats: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._folders: Counter[str] = Counter()
        self._excluded = 0

    def enters(self, path: str) -> bool:
        """Whether to look into a folder, given its path below the root."""
        name = path.rpartition("/")[2]
        if self.excludes(path):
            self._excluded += 1
            return False
        asked_for = self._include and self._include.search(path)
        if (junk := self._junk.fullmatch(name)) and not asked_for:
            self._folders[JUNK[(junk.lastindex or 1) - 1]] += 1
            return False
        return not (name.startswith(".") and name.strip("."))

    def takes(self, path: str, name: str) -> bool:
        """Whether a file is an image that is wanted.

        Args:
            path: Below the root.
            name: Its last part.
        """
        if name.startswith("."):
            return False
        ending = suffix_of(name)
        if not self.wants(path):
            self._excluded += ending in self._images
            return False
        if ending in self._images:
            return True
        self.pass_over(name)
        return False

    def wants(self, path: str) -> bool:
        """Whether the patterns allow a file."""
        if self._include and not self._include.search(path):
            return False
        return not self.excludes(path)

    def excludes(self, path: str) -> bool:
        """Whether a pattern leaves out a file and all that is in it."""
        return bool(self._exclude and self._exclude.search(path))

    def pass_over(self, name: str) -> None:
        """Count a file that is left out."""
        ending = suffix_of(name)
        if ending and not _ENDING.fullmatch(ending):
            ending = _ODD_ENDING
        (self._formats if ending in _PICTURES else self._others)[ending or _NO_ENDING] += 1

    def pass_over_folder(self, name: str) -> None:
        """Count a folder that nobody looks into."""
        if self.enters(name):
            self._others[_FOLDER] += 1

    def exclude(self, images: int) -> None:
        """Count images that the patterns do not allow."""
        self._excluded += images

    def left_out(self) -> LeftOut:
        """What was left out so far."""
        return LeftOut(
            formats=_most(self._formats),
            others=_most(self._others),
            folders=_most(self._folders),
            excluded=self._excluded,
        )


def suffix_of(name: str) -> str:
    """Ending of a file name in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 -- ten times as fast


def _most(counts: Counter[str]) -> dict[str, int]:
    """The kinds with the most, most first, and all others as one."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in ranked[_NAMED:])
    return dict(ranked[:_NAMED]) | ({_MORE: rest} if rest else {})


def _expression(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """Say which paths some patterns name, or folders above them; None for no patterns."""
    parts = [_translated(pattern) for pattern in patterns]
    return re.compile("|".join(parts), re.IGNORECASE | re.DOTALL) if parts else None


def _translated(pattern: str) -> str:
    inside = pattern.strip("/")
    begins = "^" if "/" in pattern.rstrip("/") else "(?:^|/)"
    parts = re.findall(r"\*\*/?|\[[!^]?[^]/]+\]|.", inside, re.DOTALL)
    return f"{begins}{''.join(map(_part, parts))}(?:/|$)"


def _part(part: str) -> str:
    """Say a letter or a wildcard of a pattern as a regular expression."""
    if part.startswith("**"):
        return "(?:.*/)?" if part.endswith("/") else ".*"
    if part in "*?":
        return "[^/]*" if part == "*" else "[^/]"
    if len(part) == 1:
        return re.escape(part)
    inverted, letters = part[1] in "!^", part[1:-1].lstrip("!^")
    escaped = re.sub(r"([\\[\]&~|^])", r"\\\1", letters)
    return f"[^/{escaped}]" if inverted else f"[{escaped}]"


_JUNK = re.compile("|".join(f"({''.join(map(_part, name))})" for name in JUNK), re.IGNORECASE)
