"""What is installed, what it can do here, and what is in the way."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from app.output import one_line

PACKAGES = (
    "matvit-retrieval", "torch", "torchvision", "timm", "faiss-gpu", "faiss-cpu", "numpy",
    "pillow", "pyarrow", "streamlit",
)  # fmt: skip
_REPAIR_FAISS = (
    "both faiss-gpu and faiss-cpu are installed and overwrite each other; run: "
    "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu"
)


def examine() -> dict[str, Any]:
    """Collect versions, devices and problems as plain JSON values."""
    versions = {name: installed(name) for name in PACKAGES}
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "problems": conflicts(versions),
    }
    for part in (_torch, _faiss, _encoders):
        try:
            report |= part()
        except Exception as error:  # noqa: BLE001 -- a broken installation is what we look for
            report["problems"].append(
                f"{part.__name__[1:]}: {type(error).__name__}: {one_line(error)}"
            )
    return report


def installed(name: str) -> str | None:
    """Version of an installed distribution; None without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def conflicts(versions: dict[str, str | None]) -> list[str]:
    """Problems that show in the versions alone, each with the command that repairs it."""
    problems = []
    if versions.get("faiss-gpu") and versions.get("faiss-cpu"):
        problems.append(_REPAIR_FAISS)
    if not versions.get("faiss-gpu") and not versions.get("faiss-cpu"):
        build = "faiss-gpu" if platform.system() == "Linux" and _is_x86() else "faiss-cpu"
        problems.append(f"FAISS is missing; run: pip install {build}")
    return problems


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def render(report: dict[str, Any]) -> list[str]:
    """Lay the report out for people."""
    rows = {
        "python": f"{report['python']} on {report['platform']}",
        **{name: version or "not installed" for name, version in report["versions"].items()},
        "threads": report.get("threads", "unknown"),
        "GPU": ", ".join(report.get("gpus", [])) or "none seen by torch",
        "bfloat16": "used" if report.get("bfloat16") else "not used: no instructions for it",
        "FAISS GPUs": report.get("faiss_gpus", "unknown"),
        "FAISS build": report.get("faiss_build", "unknown"),
        "encoders": ", ".join(report.get("encoders", [])) or "none bundled",
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    lines += [f"PROBLEM: {problem}" for problem in report["problems"]]
    return lines if report["problems"] else [*lines, "no problems found"]


def _torch() -> dict[str, Any]:
    import timm  # noqa: F401 -- fails here if torch and torchvision are of different builds
    import torch

    from matvit import resolve_device, resolve_precision

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    precision = resolve_precision(resolve_device("auto"), "auto")
    return {
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "bfloat16": precision == torch.bfloat16,
    }


def _faiss() -> dict[str, Any]:
    import faiss

    return {
        "faiss_gpus": faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0,
        "faiss_build": " ".join(faiss.get_compile_options().split()),
    }


def _encoders() -> dict[str, Any]:
    from matvit import bundled_encoders

    return {"encoders": bundled_encoders()}
