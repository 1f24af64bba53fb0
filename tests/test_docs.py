"""The docs do not rot: their samples run, their commands exist, their numbers were measured."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shlex
import subprocess
import sys

import pytest
import typer
from sessions import ROOT, assert_alike, blocks, photographs, python_session, shell_session

from app.cli import cli

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
QUICKSTART = PAGES["docs/quickstart.md"]


def test_what_was_measured_is_what_the_results_say():
    check = [sys.executable, str(ROOT / "benchmarks" / "render.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_session_of_the_quickstart_runs_as_printed(tmp_path, monkeypatch, capsys):
    photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    program, wanted = python_session(QUICKSTART)
    exec(compile(program, "quickstart.md", "exec"), {})
    assert_alike(capsys.readouterr().out.splitlines(), wanted)


def test_the_shell_session_of_the_quickstart_runs_as_printed(tmp_path, monkeypatch, matvit):
    photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    session = list(shell_session(QUICKSTART))
    assert len(session) == 6
    for command, wanted in session:
        code, out, err = matvit(*command)
        assert code == 0, err
        assert_alike(out.splitlines(), wanted)


def samples() -> list[str]:
    """Every block of Python of every page."""
    return [block for text in PAGES.values() for block in blocks(text, "python")]


@pytest.mark.parametrize("sample", samples())
def test_every_sample_of_python_compiles_and_imports_what_there_is(sample):
    tree = ast.parse(sample)
    tree.body = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(compile(tree, "sample", "exec"), {})


def commands() -> list[list[str]]:
    """Every `matvit` command on a line of its own, in any block of any page."""
    found = []
    for text in PAGES.values():
        for block in blocks(text, "sh", "console"):
            for line in block.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["matvit"]:
                    end = words.index("|") if "|" in words else len(words)
                    found.append(words[1:end])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_and_option_that_is_named_exists(words):
    command = typer.main.get_command(cli)
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.get_command(None, rest.pop(0))
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in rest if re.match(r"--?[a-z]", word)} <= options


REFERENCE = re.findall(r"^::: (\w+)\.(\w+)$", "\n".join(PAGES.values()), re.MULTILINE)


def test_the_reference_has_the_names_that_most_programs_need():
    assert len(REFERENCE) == 16


@pytest.mark.parametrize(("package", "name"), REFERENCE)
def test_every_name_of_the_reference_has_examples_that_run(package, name):
    item = getattr(importlib.import_module(package), name)
    (found,) = doctest.DocTestFinder(recurse=False).find(item, name)
    assert found.examples
    assert "Examples:" in found.docstring  # which the reference shows as code
    assert doctest.DocTestRunner().run(found).failed == 0


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")]
    assert [page for page in pages if page not in navigation] == []
