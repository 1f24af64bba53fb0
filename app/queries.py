"""What is typed as an IMAGE: a file, a folder of them, a list on stdin, or an indexed image."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import indexing
import retrieval

STDIN = "-"
_ID = "id:"

Query: TypeAlias = "Path | retrieval.Stored"


def read_queries(
    words: Iterable[str], index: indexing.IndexedImages
) -> Iterator[Query | OSError | ValueError]:
    """Yield the images that some words name, one at a time; an error in place of each unknown one.

    A word is a file, a folder, of which all images are taken, `-` for a list of words on stdin,
    one a line, `id:7` for an image of the index, or the name of one. What is in the way first
    counts: a file comes before an indexed image of its name.

    Args:
        words: As typed.
        index: Whose images can be named.
    """
    for word in words:
        if word == STDIN:
            yield from read_queries(_lines(), index)
            continue
        try:
            if Path(word).is_dir():
                yield from _images_in(Path(word))
            else:
                yield _image(word, index)
        except (OSError, ValueError) as error:
            yield error


def all_queries(words: Iterable[str], index: indexing.IndexedImages) -> tuple[Query, ...]:
    """Return all images that some words name; see `read_queries`.

    Raises:
        OSError: The error of the first that is not there; ValueError likewise.
    """
    found = []
    for query in read_queries(words, index):
        if isinstance(query, Exception):
            raise query
        found.append(query)
    return tuple(found)


def _image(word: str, index: indexing.IndexedImages) -> Query:
    if Path(word).exists():
        return Path(word)
    number = word.removeprefix(_ID)
    if number != word and number.isascii() and number.isdecimal() and len(number) < 19:
        wanted = int(number)
        row = int(index.ids.searchsorted(wanted))
        if row == len(index) or index.ids[row] != wanted:
            raise ValueError(f"{index.path} has no image with id {wanted}")
        return retrieval.Stored(wanted)
    # As an index has them: what is no UTF-8 in a name is replaced.
    row_or_none = index.row_named(os.fsencode(word).decode(errors="replace"))
    if row_or_none is None:
        raise FileNotFoundError(f"no such image: {word}; nor is it the name of an indexed one")
    return retrieval.Stored(int(index.ids[row_or_none]))


def _images_in(folder: Path) -> Iterator[Query]:
    corpus = indexing.Corpus.open(folder)
    for name in corpus.names.to_pylist():
        yield folder / name


def _lines() -> Iterator[str]:
    """Lines of stdin as they come; names of files may be no UTF-8."""
    if sys.stdin is None:
        return
    stream = getattr(sys.stdin, "buffer", None)
    for line in sys.stdin if stream is None else stream:
        text = line if isinstance(line, str) else os.fsdecode(line)
        if text := text.rstrip("\r\n"):
            yield text
