"""What small files cost that were made to be dear, and the largest images that are still decoded.

    python benchmarks/bombs.py

Each file is decoded in a process of its own, by one thread and by eight at once; beside the seconds
that the processor worked stands by how much memory grew at most. Before images were bounded the
files of the first kind took 3 to 5 GB and up to 144 s.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import process_time

from PIL import Image
from provenance import provenance, write_result

from matvit import Preprocess

_SIDE = 13_300  # just below Pillow's own limit
_THREADS = (1, 8)


def main() -> None:
    """Measure all files and write the result."""
    if len(sys.argv) > 1:
        _decode(Path(sys.argv[1]), int(sys.argv[2]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in FILES.items():
            path = Path(folder, name)
            path.write_bytes(make())
            for threads in _THREADS:
                command = [sys.executable, __file__, str(path), str(threads)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append({"file": name, "bytes": path.stat().st_size, "threads": threads}
                            | json.loads(answer.stdout))  # fmt: skip
                print(rows[-1])
            path.unlink()
    write_result("bombs", provenance("python benchmarks/bombs.py") | {"rows": rows})


def _decode(path: Path, threads: int) -> None:
    """Decode one file on some threads at once, and print what that cost."""
    preprocess, data = Preprocess(img_size=224), path.read_bytes()
    preprocess.decode(_encoded(Image.new("RGB", (8, 8)), "PNG"))
    before, start = _peak(), process_time()
    with ThreadPoolExecutor(threads) as pool:
        (outcome, *_) = set(pool.map(lambda _: _outcome(preprocess, data), range(threads)))
    seconds = process_time() - start
    grown = (_peak() - before) / 1e6
    print(json.dumps({"outcome": outcome, "seconds": round(seconds, 2), "grown_mb": round(grown)}))


def _outcome(preprocess: Preprocess, data: bytes) -> str:
    try:
        preprocess.decode(data)
    except ValueError as error:
        return str(error)
    return "decoded"


def _peak() -> int:
    """Most bytes in memory so far; what `getrusage` says begins with that of the parent."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) * 1024


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _scans(copies: int) -> bytes:
    """A progressive JPEG that draws its last scan again and again."""
    data = _encoded(Image.new("L", (7136, 7136)), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    last = data.rindex(b"\xff\xda", 0, end)
    return data[:end] + data[last:end] * copies + data[end:]


def _plain(mode: str, side: int, kind: str, **options: object) -> Callable[[], bytes]:
    return lambda: _encoded(Image.new(mode, (side, side)), kind, **options)


FILES = {
    "rgb.webp": _plain("RGB", _SIDE, "WEBP", lossless=True, method=0),
    "gray16.png": _plain("I;16", _SIDE, "PNG"),
    "rgba.png": _plain("RGBA", _SIDE, "PNG"),
    "scans.jpg": lambda: _scans(20_000),
    "largest-rgb.png": _plain("RGB", _SIDE, "PNG"),
    "largest-rgba.png": _plain("RGBA", 11_100, "PNG"),
    "largest.webp": _plain("RGB", 7_400, "WEBP", lossless=True, method=0),
    "largest-scans.jpg": lambda: _scans(80),
    "photograph.jpg": lambda: _encoded(
        Image.effect_noise((4000, 3000), 60).convert("RGB"), "JPEG", quality=90
    ),
}


if __name__ == "__main__":
    main()
