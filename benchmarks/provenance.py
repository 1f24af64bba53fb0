"""Where a number comes from: recorded with every benchmark result."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
# Results of other benchmarks do not change what is measured.
_CHANGES = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
_PACKAGES = ("torch", "timm", "numpy", "pillow", "faiss-gpu", "faiss-cpu")


def provenance(command: str, checkout: Path = ROOT) -> dict[str, Any]:
    """Commit, device, threads, versions, date and command of this run."""
    return {
        "command": command,
        "commit": _git(checkout, "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git(checkout, *_CHANGES)),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": ", ".join(_devices()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `benchmarks/results/NAME.json` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)
    return path


def without_paths(arguments: list[str]) -> str:
    """Leave out of a command line where files lie on this machine, and a note at its end."""
    if "--note" in arguments:
        arguments = arguments[: arguments.index("--note")]
    return re.sub(r"(^|[ =])\S*/", r"\1", " ".join(arguments))


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """The CPU, and the GPU if torch sees one."""
    return [_processor(), *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])]


def _processor() -> str:
    """Model name of the CPU, such as `AMD EPYC`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
