"""What is packaged, and what a checkout may hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
INSTALLED = find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"])
TOPS = ("matvit", "indexing", "retrieval", "app")


def test_every_package_is_installed():
    found = {
        file.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in TOPS
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert set(INSTALLED) == found


def test_every_file_that_is_not_code_is_installed():
    data = SETUPTOOLS["package-data"]
    for top in TOPS:
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                below = file.relative_to(ROOT / top)
                patterns = [*data["*"], *data.get(top, [])]
                assert any(below.match(pattern) for pattern in patterns), file


def test_every_tool_of_the_checks_has_one_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    extras = PYPROJECT["project"]["optional-dependencies"]
    tools = {name.partition(">")[0].partition("[")[0] for name in extras["dev"] + extras["docs"]}
    assert tools - pinned == {
        "scikit-learn", "scipy", "lancedb", "qdrant-client",  # oracles and extras, not tools
    }  # fmt: skip
    assert "torch" not in pinned


def test_warnings_are_errors_in_every_file_of_ours_and_in_no_other():
    filters = PYPROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"]
    patterns = [each.removeprefix("error:::") for each in filters if each.startswith("error:::")]
    ours = re.compile("|".join(patterns))
    modules = {*(file.stem for file in (ROOT / "tests").rglob("*.py")), *INSTALLED, "app.cli"}
    assert [each for each in modules if not ours.match(each)] == []
    others = ("torch", "streamlit", "apple", "matvitamin", "_pytest.main", "tests_of_others")
    assert [each for each in others if ours.match(each)] == []


def test_no_large_file_is_tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    tracked = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]
    meant = {".safetensors", ".png", ".jpg", ".svg"}
    large = [file for file in tracked if file.stat().st_size > 1_000_000]
    assert [file for file in large if file.suffix not in meant] == []
