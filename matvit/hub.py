"""Encoders shared on the Hugging Face hub, as `hf-hub:owner/name`: where they lie on this machine.

What was fetched once is found in the cache that all programs share, without network and without
the hub's own library. Only what is not there is fetched, if that library is installed.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PREFIX = "hf-hub:"
"""What the name of an encoder on the hub begins with."""

_NAME = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
_WANTED = ("*.json", "*.safetensors")


def is_on_hub(source: str | Path) -> bool:
    """Whether a source is the name of something on the hub."""
    return isinstance(source, str) and source.startswith(PREFIX)


def hub_folder(source: str) -> Path:
    """Find the folder of what is on the hub, and fetch it if it was never fetched.

    Args:
        source: `hf-hub:owner/name`, and `@` with a branch, a tag or a commit if it is not `main`.

    Raises:
        FileNotFoundError: If it is not in the cache and cannot be fetched; the message says why.
        ValueError: If it is no such name.
    """
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None or ".." in source:
        raise ValueError(f"{source!r} is no name on the hub; write hf-hub:owner/name")
    repo, revision = match["repo"], match["revision"] or "main"
    if (folder := _cached(repo, revision)) is not None:
        return folder
    where = f"{repo} ({revision}) is not in the cache {_cache()}"
    if find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"{where}; install huggingface-hub, or copy it there from a machine that has it"
        )
    try:
        fetch = import_module("huggingface_hub").snapshot_download
        return Path(fetch(repo, revision=revision, allow_patterns=list(_WANTED)))
    except Exception as error:  # whatever the hub and the network come up with
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FileNotFoundError(f"{where} and cannot be fetched: {reason}") from error


def _cached(repo: str, revision: str) -> Path | None:
    """The folder of a revision as the hub's library leaves it, None if there is none."""
    place = _cache() / f"models--{repo.replace('/', '--')}"
    reference = place / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = place / "snapshots" / commit
    is_below = folder.parent == place / "snapshots" and re.fullmatch(r"[\w.-]+", commit)
    return folder if is_below and (folder / "config.json").is_file() else None


def _cache() -> Path:
    """Where the hub's library keeps what it fetched."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
