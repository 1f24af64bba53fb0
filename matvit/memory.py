"""How much memory there is left."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, or None where the system does not say.

    A container's own limit counts if it is the smaller one.
    """
    known = [left for left in (_of_machine(), _of_container()) if left is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    lines = _MEMINFO.read_text(encoding="ascii").splitlines() if _MEMINFO.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_container() -> int | None:
    """What the control group of this process (version 2) leaves it, page cache not counted."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    counts = dict(line.split() for line in stat)
    return int(limit) - used + int(counts.get("inactive_file", 0))
