"""Put the page together: its files, a small encoder in ONNX, and onnxruntime-web from npm.

    python docs/query-in-the-browser/build.py --out phone [--encoder NAME] [--submodel S]
    matvit serve photos.index --page phone

Wants Node's `npm`. `S~` is smaller still, and `8xS` any mix.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from matvit import DEFAULT_ENCODER, export_onnx, load_encoder

HERE = Path(__file__).parent
PAGE = ("index.html", "page.js", "encoder.js")
RUNTIME = "onnxruntime-web@1"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Folder to make.")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="The index's own.")
    parser.add_argument("--submodel", default="S", help="What the browser computes.")
    given = parser.parse_args()
    build(given.out, given.encoder, given.submodel)


def build(out: Path, encoder: str, submodel: str) -> None:
    """Write page, encoder and runtime into a folder."""
    whole = load_encoder(encoder, runtime="onnx")
    export_onnx(whole, whole.submodel(submodel), out / "encoder", int8=True)
    with np.load(out / "encoder" / "golden.npz") as golden:
        pair = {name: golden[name].ravel().tolist() for name in ("image", "vector")}
    (out / "encoder" / "golden.json").write_text(json.dumps(pair), encoding="utf-8")
    for name in PAGE:
        shutil.copy(HERE / name, out / name)
    with tempfile.TemporaryDirectory() as folder:
        pack = ["npm", "pack", "--silent", RUNTIME, "--pack-destination", folder]
        subprocess.run(pack, check=True)  # noqa: S603
        (packed,) = Path(folder).glob("*.tgz")
        with tarfile.open(packed) as files:
            files.extractall(folder, filter="data")
        (out / "ort").mkdir(exist_ok=True)
        for name in RUNTIME_FILES:
            shutil.copy(Path(folder, "package", "dist", name), out / "ort" / name)


if __name__ == "__main__":
    main()
