from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def test_every_package_is_installed():
    found = {
        file.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("matvit", "indexing", "retrieval", "app")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found


def test_every_file_that_is_not_code_is_installed():
    for package in SETUPTOOLS["packages"]:
        folder = ROOT / package.replace(".", "/")
        top = package.partition(".")[0]
        for file in folder.iterdir():
            if file.is_file() and file.suffix != ".py":
                patterns = SETUPTOOLS["package-data"][top]
                below = file.relative_to(ROOT / top)
                assert any(below.match(pattern) for pattern in patterns), file
