"""Search on a GPU: the tests that need one, then the benchmark of the kinds that run there.

python benchmarks/gpu_index.py

Exits with 2 where FAISS sees no GPU. The result is benchmarks/results/kinds_gpu.json.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from indexing import KINDS
from indexing.search.gpu import gpu_count
from indexing.search.kinds import CPU_ONLY

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Run both; the exit code is that of the first that fails."""
    if gpu_count() == 0:
        print("FAISS sees no GPU here: nothing was tested or measured", file=sys.stderr)
        return 2
    kinds = [name for name in KINDS if name not in CPU_ONLY]
    for command in (
        ["-m", "pytest", "-q", "tests/indexing/search/test_gpu_index.py"],
        ["benchmarks/kinds.py", "--device", "cuda", "--result", "kinds_gpu", "--kinds", *kinds],
    ):
        if code := subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
