"""What is installed, what it can do here, and what is in the way."""

from __future__ import annotations

import platform
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

from app.output import missing, one_line

PACKAGES = (
    "matvit-retrieval", "onnxruntime", "onnx", "torch", "torchvision", "timm", "faiss-gpu",
    "faiss-cpu", "numpy", "pillow", "pyarrow", "streamlit",
)  # fmt: skip
_REPAIR_FAISS = (
    "both faiss-gpu and faiss-cpu are installed and overwrite each other; run: "
    "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu"
)


def examine(encoder: Path | None = None) -> dict[str, Any]:
    """Collect versions, devices and problems as plain JSON values.

    Args:
        encoder: Folder that `matvit extract --format onnx` wrote, to be run here.
    """
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
    if encoder is not None:
        report |= _ask(encoder, report["problems"])
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
        problems += filter(None, [missing("faiss")])
    return problems


def render(report: dict[str, Any]) -> list[str]:
    """Lay the report out for people."""
    rows = {
        "python": f"{report['python']} on {report['platform']}",
        **{name: version or "not installed" for name, version in report["versions"].items()},
        "threads": report.get("threads", "unknown"),
        "GPU": ", ".join(report.get("gpus", [])) or "none seen by torch",
        "bfloat16": "used by torch" if report.get("bfloat16") else "not used",
        "FAISS GPUs": report.get("faiss_gpus", "unknown"),
        "FAISS build": report.get("faiss_build", "unknown"),
        "encoders": ", ".join(report.get("encoders", [])) or "none bundled",
        **{file: f"cosine {cosine:.6f}" for file, cosine in report.get("cosines", {}).items()},
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    lines += [f"PROBLEM: {problem}" for problem in report["problems"]]
    return lines if report["problems"] else [*lines, "no problems found"]


def _torch() -> dict[str, Any]:
    if installed("torch") is None:
        return {}
    import timm  # noqa: F401 -- fails here if torch and torchvision are of different builds
    import torch

    from matvit import resolve_device, resolve_precision

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    precision = resolve_precision(torch.device(resolve_device("auto")), "auto")
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


def _ask(encoder: Path, problems: list[str]) -> dict[str, Any]:
    """Run the graphs in a folder, and compare with what they found where they were written."""
    from matvit import check_onnx

    described, findings = check_onnx(encoder)
    problems += [one_line(each.problem) for each in findings if each.problem is not None]
    return {
        "encoder": {"name": described.name, "submodel": described.submodel},
        "cosines": {each.file: each.cosine for each in findings if isfinite(each.cosine)},
    }
