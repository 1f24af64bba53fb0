"""Class labels in a column of Parquet files, whatever type they have there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexing.records import NO_LABEL

_TEXT, _NUMBER = pa.large_string(), pa.int64()
_MOST_CLASSES = 1 << 20
_WITHOUT = "or go on without labels"


class Labels(NamedTuple):
    """The labels of one file.

    Attributes:
        values: Text or int64, one for each image, null for none; of type null if there is none.
        names: What integers mean; None for their own digits.
    """

    values: pa.Array
    names: list[str] | None


def read_labels(column: pa.ChunkedArray, names: list[str] | None, file: Path) -> Labels:
    """Read a column as what it is.

    Text and integers are classes. Categories (dictionaries) are what they stand for, booleans
    the classes `false` and `true`, and floats integers, of which some are missing.

    Args:
        column: The labels.
        names: What integers mean, as the `datasets` library writes it.
        file: For messages.

    Raises:
        ValueError: If it is anything else.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read_labels(column.cast(kind.value_type), names, file)
    values = column.combine_chunks()
    if pa.types.is_boolean(kind):
        return Labels(pc.if_else(values, "true", "false").cast(_TEXT), None)
    if pa.types.is_floating(kind):
        return Labels(_whole_numbers(values, file), names)
    if pa.types.is_null(kind):
        return Labels(values, None)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return Labels(values.cast(_TEXT), None)
    if not pa.types.is_integer(kind):
        raise ValueError(f"{file} has labels of type {kind}; expected integers or text, {_WITHOUT}")
    try:
        return Labels(values.cast(_NUMBER), names)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} has labels that number no classes: {error}") from error


def joined(
    parts: Sequence[Labels | None], rows: Sequence[int], root: Path
) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Number the classes of all files together.

    Args:
        parts: The labels of each file; None if it has none.
        rows: Images in each file.
        root: For messages.

    Returns:
        Class index of each image, -1 for none, and what they are called; None if no image has one.

    Raises:
        ValueError: If labels of different files do not go together, or do not number classes.
    """
    some = [part for part in parts if part is not None]
    known = [part for part in some if part.values.null_count < len(part.values)]
    if not known:
        return None, None
    kinds = sorted({str(part.values.type) for part in known})
    if len(kinds) > 1:
        raise ValueError(f"labels in {root} are of types int64 and string; make them alike")
    meanings = [part.names for part in known if part.names is not None]
    if any(names != meanings[0] for names in meanings):
        raise ValueError(
            f"files in {root} name the numbers of their classes differently; make them alike, "
            f"{_WITHOUT}"
        )
    kind = known[0].values.type
    values = pa.concat_arrays(
        part.values.cast(kind) if part is not None else pa.nulls(count, kind)
        for part, count in zip(parts, rows, strict=True)
    )
    if kind == _TEXT:
        names = sorted(pc.unique(values.drop_null()).to_pylist())
        place = pc.index_in(values, value_set=pa.array(names, kind))
        return np.asarray(place.fill_null(NO_LABEL), dtype=np.int64), names
    return _numbered(values, meanings[0] if meanings else None, root)


def _whole_numbers(values: pa.Array, file: Path) -> pa.Array:
    """Turn floats into integers; what is not a number is missing."""
    numbers = np.asarray(values.cast(pa.float64()).fill_null(np.nan), dtype=np.float64)
    known = ~np.isnan(numbers)
    odd = known & ((numbers != np.floor(numbers)) | (np.abs(numbers) >= 1 << 53))
    if odd.any():
        raise ValueError(
            f"{file} has labels that are fractions or too large, such as {numbers[odd][0]:g}; "
            f"expected integers or text, {_WITHOUT}"
        )
    return pa.array(np.where(known, numbers, 0).astype(np.int64), mask=~known)


def _numbered(
    values: pa.Array, names: list[str] | None, root: Path
) -> tuple[NDArray[np.int64], list[str]]:
    """Take labels for what they are if they number the classes."""
    labels = np.asarray(values.fill_null(NO_LABEL), dtype=np.int64)
    if labels.max(initial=NO_LABEL) >= _MOST_CLASSES:
        raise ValueError(
            f"{root} has a label of {labels.max():,}; labels number the classes from 0, "
            f"up to {_MOST_CLASSES:,} of them"
        )
    names = names or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    if labels.min(initial=0) < NO_LABEL or labels.max(initial=-1) >= len(names):
        raise ValueError(f"{root} has labels outside its {len(names)} class names")
    return labels, names
