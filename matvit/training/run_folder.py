"""What a training run leaves behind while it goes on: its log, and the state to resume from."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import torch

STATE = "state.pt"
LOG = "log.jsonl"


def load_state(path: Path) -> dict[str, Any]:
    """Read a state, tensors and plain values only.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"cannot read {path}: {error}; start again in another folder") from error
    return state


def save_state(state: dict[str, Any], out: Path) -> None:
    """Write a state; the one before stays until the new one is whole."""
    partial = out / f".{STATE}.partial"
    torch.save(state, partial)
    partial.replace(out / STATE)


def log(out: Path, record: dict[str, Any]) -> None:
    """Add one JSON object, with the time in seconds since 1970, to the log."""
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")
