"""Manifests of earlier versions, said in the words of the present one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from indexing.search.request import EXACT, KindRequest

FORMAT_VERSION = 4

_NEW_IN_VERSION_2 = {"next_shard", "staged", "plan", "adding", "tombstones", "failures"}
_NEW_IN_VERSION_3 = {"factory", "calibration", "request", "note"}


def upgrade(values: dict[str, Any]) -> None:
    """Bring the JSON values of a manifest to the present version, in place.

    Raises:
        ValueError: If they have keys that their version did not know.
    """
    version = values["format_version"]
    if version == 1:
        _upgrade_from_1(values)
    if version < 3:
        _upgrade_from_2(values)
    if version == 3:
        _upgrade_from_3(values)
    values["format_version"] = FORMAT_VERSION


def _upgrade_from_1(values: dict[str, Any]) -> None:
    """Say in the words of version 2 what a manifest of version 1 means, as far as it is one."""
    if early := sorted(_NEW_IN_VERSION_2 & set(values)):
        raise ValueError(f"manifest has unknown keys {early} for version 1")
    shards, counts = values.get("shards"), values.get("counts")
    if isinstance(counts, dict):
        counts.setdefault("removed", 0)
    values |= {
        "next_shard": len(shards) if isinstance(shards, list) else 0,  # numbered from 0
        "staged": [], "plan": None, "adding": None, "tombstones": None, "failures": None,
    }  # fmt: skip


def _upgrade_from_2(values: dict[str, Any]) -> None:
    """Say in present words what a manifest of version 2 means: `auto` chose Flat."""
    if not isinstance(index := values.get("index"), dict):
        return
    if early := sorted(_NEW_IN_VERSION_3 & set(index)):
        raise ValueError(f"manifest.index has unknown keys {early} for version 2")
    request = asdict(KindRequest())
    values["index"] = {
        **index, "factory": EXACT, "calibration": None, "request": request, "note": None
    }  # fmt: skip


def _upgrade_from_3(values: dict[str, Any]) -> None:
    """Say in present words what a manifest of version 3 means: `auto` chose for the CPU."""
    index = values.get("index")
    if not isinstance(index, dict) or not isinstance(request := index.get("request"), dict):
        return
    if "device" in request:
        raise ValueError("manifest.index.request has unknown keys ['device'] for version 3")
    index["request"] = {**request, "device": KindRequest().device}
