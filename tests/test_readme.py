"""The README's sessions print what it says, and it is the front door that it should be."""

from __future__ import annotations

import re

import pytest
from sessions import ROOT, assert_alike, photographs, python_session, shell_session

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_session_runs_as_printed(tmp_path, monkeypatch, capsys):
    photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    program, wanted = python_session(README)
    exec(compile(program, "README.md", "exec"), {})
    assert_alike(capsys.readouterr().out.splitlines(), wanted)


def test_the_shell_session_runs_as_printed(tmp_path, monkeypatch, matvit):
    photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    session = list(shell_session(README))
    assert [command[0] for command, _ in session] == ["index", "search", "index", "index"]
    for command, wanted in session:
        code, out, err = matvit(*command)
        assert code == 0, err
        assert_alike(out.splitlines(), wanted)


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_named(command):
    assert command in README


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 10_000


def test_it_has_one_picture_and_one_table():
    assert len(re.findall(r"!\[", README)) == 1
    assert len(re.findall(r"^\| ---", README, re.MULTILINE)) == 1
