"""JSON as frozen dataclasses: exactly their keys and types, nothing converted or ignored."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from typing import TypeVar, get_args, get_origin, get_type_hints

_Record = TypeVar("_Record")
_Plain = TypeVar("_Plain")

_LARGEST = 1 << 53  # what every JSON reader keeps exact


def read_record(kind: type[_Record], value: object, where: str) -> _Record:
    """Read a JSON object as the dataclass `kind`; every key must be there and no other.

    Raises:
        ValueError: If `value` is anything but what `asdict` of such a dataclass looks like in JSON.
    """
    values = _expect(dict, value, where)
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{where} has unknown keys {unknown}; known: {sorted(hints)}")
    if missing := sorted(set(hints) - set(values)):
        raise ValueError(f"{where} lacks the keys {missing}")
    return kind(**{name: _read(hints[name], values[name], f"{where}.{name}") for name in hints})


def _read(kind: object, value: object, where: str) -> object:
    """Read a JSON value as the type `kind`, without converting anything."""
    if isinstance(kind, type) and is_dataclass(kind):
        return read_record(kind, value, where)
    if isinstance(kind, types.UnionType):
        return None if value is None else _read(get_args(kind)[0], value, where)
    if get_origin(kind) is tuple:
        items = _expect(list, value, where)
        return tuple(
            _read(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(items)
        )
    if kind is int and not 0 <= _expect(int, value, where) <= _LARGEST:
        raise ValueError(f"{where} must be within 0..{_LARGEST}, got {value!r:.40}")
    plain = get_origin(kind) or kind
    assert isinstance(plain, type)
    return _expect(plain, value, where)


def _expect(kind: type[_Plain], value: object, where: str) -> _Plain:
    """Return `value` if it is exactly of type `kind` (JSON's true is not an integer)."""
    if type(value) is not kind:
        raise ValueError(f"{where} must be a {kind.__name__}, got {value!r:.100}")
    return value
