"""Mutants to catch: a circle that adds floors; a face that hides who is imported, or by whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.imports import PACKAGES, measure_imports, read_modules

FILES = {
    "matvit/__init__.pyi": "from .model import Model as Model\nfrom .cut import cut as cut",
    "matvit/model.py": "import torch",
    "matvit/cut.py": "from matvit.model import Model",
    "matvit/save.py": "from typing import TYPE_CHECKING\n"
    "from matvit.cut import cut\n"
    "if TYPE_CHECKING:\n    from matvit.run import run",
    "matvit/run.py": "from matvit import save",
    "indexing/store/__init__.py": "from indexing.store.files import write",
    "indexing/store/files.py": "def write():\n    from indexing.build import build",
    "indexing/build.py": "from indexing.store import write\nfrom matvit import Model",
    "indexing/index.py": "from indexing.build import build\nfrom matvit.model import Model",
    "retrieval/ask.py": "import matvit\nfrom indexing import store\nmatvit.cut()\nstore.write()",
    "app/cli.py": "from retrieval import ask",
}


@pytest.fixture
def checkout(tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def measured(checkout):
    return measure_imports(read_modules(checkout))


def test_floors_are_the_files_of_the_longest_chain(measured):
    assert measured["floors"] == {"matvit": 4, "indexing": 2, "retrieval": 1, "app": 1}


def test_an_import_inside_a_function_closes_a_circle_and_one_for_types_does_not(measured):
    assert measured["circles"] == [["indexing.build", "indexing.store.files"]]


def test_who_imports_a_file_is_seen_through_its_face(measured):
    once = ["matvit.save", "retrieval.ask"]
    assert measured["imported_once"] == {"files": 2, "lines": 8, "names": once}


def test_names_of_a_face_are_not_past_it(measured):
    # past it: matvit.model, and retrieval.ask as a module
    assert measured["between_packages"] == {"imports": 5, "past_the_face": 2}


def test_the_house_has_no_circle_no_ninth_floor_and_nobody_goes_past_a_face():
    found = measure_imports(read_modules(Path(__file__).parents[2]))
    assert found["circles"] == []
    assert max(found["floors"].values()) <= 8
    assert found["between_packages"]["past_the_face"] == 0
