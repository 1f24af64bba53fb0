"""What needs no torch runs where there is none, nor Streamlit, matplotlib, scikit-learn, pandas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import photo

HEAVY = ["torch", "timm", "torchvision", "streamlit", "matplotlib", "sklearn", "pandas"]

COMMANDS = """
import json, sys
from importlib.abc import MetaPathFinder

heavy, refused, commands = json.loads(sys.argv[1])

class Refusing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
from app import main

for command in commands:
    sys.argv = ["matvit", *command]
    try:
        main()
    except SystemExit as done:
        print("exit", done.code, flush=True)
print("loaded", [name for name in heavy if sys.modules.get(name) is not None])
"""


def run(commands: list[list[str]], place: Path, *, refused: bool) -> subprocess.CompletedProcess:
    given = json.dumps([HEAVY, HEAVY if refused else [], commands])
    return subprocess.run(
        [sys.executable, "-c", COMMANDS, given],
        cwd=place,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(place), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    for number in range(48):
        photo(root / "photos" / "ab"[number % 2] / f"{number}.png", number)
    photo(root / "queries" / "a" / "new.png", 99)
    done = run([["index", "build", "photos", "--out", "i"]], root, refused=True)
    assert done.stdout.splitlines()[-2:] == ["exit 0", "loaded []"], done.stderr
    return root


def test_an_index_is_built_opened_and_asked(place):
    commands = [
        ["index", "info", "i"],
        ["search", "i", "photos/a/0.png", "--submodel", "S", "-k", "1"],
        ["search", "i", "photos/a/0.png", "--submodel", "S:int8", "-k", "1"],
        ["search", "i", "photos/a/0.png", "-k", "1", "--json"],
        ["evaluate", "i", "--queries", "queries", "--submodels", "S,XL,XL:int8"],
        ["tune", "i", "--size", "40", "--max-loss", ".9"],
        ["search", "i", "photos/a/0.png", "--max-ms", "10000", "-k", "1"],
        ["search", "i", "photos/a/0.png", "--submodel", "auto", "-k", "1"],
        ["index", "add", "i"],
        ["index", "verify", "i"],
    ]
    done = run(commands, place, refused=True)
    exits = [line for line in done.stdout.splitlines() if line.startswith("exit")]
    assert exits == ["exit 0"] * len(commands), done.stdout + done.stderr
    assert "photos/a/0.png" in done.stdout or "a/0.png" in done.stdout
    assert "XL:int8" in done.stdout


def test_what_needs_torch_says_in_one_line_what_to_install(place):
    commands = [
        ["extract", "matvit-tiny64", "--submodel", "S", "--out", "small"],
        ["index", "build", "photos", "--out", "other", "--device", "cuda"],
        ["evaluate", "i", "--queries", "queries", "--out", "report"],
        ["app", "i"],
    ]
    done = run(commands, place, refused=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert [line.partition("; ")[0] for line in lines] == [
        f"error: {module} is missing" for module in ("torch", "torch", "matplotlib", "streamlit")
    ]
    assert all("run: pip install 'matvit-retrieval[" in line for line in lines)


def test_onnx_is_extracted_and_checked_without_torch(place):
    commands = [
        ["extract", "matvit-tiny64", "--submodel", "S", "--format", "onnx", "--out", "small"],
        ["doctor", "--encoder", "small", "--json"],
    ]
    done = run(commands, place, refused=True)
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert report["cosines"]["model.onnx"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "command",
    [
        ["search", "i", "photos/a/0.png", "--submodel", "S"],
        ["index", "info", "i"],
        ["--help"],
    ],
)
def test_where_torch_is_installed_it_is_not_imported_for_nothing(place, command):
    done = run([command], place, refused=False)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stdout + done.stderr
