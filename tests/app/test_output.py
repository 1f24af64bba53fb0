"""What reaches a terminal: nothing that it obeys, whatever names and encodings there are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.output import one_line, readable, say, show, show_json, show_row

NAMES = {
    "a.png": "a.png",
    "ü ✓ 日本.png": "ü ✓ 日本.png",
    "two  spaces.png": "two  spaces.png",
    "b\nc.png": r"b\nc.png",
    "t\tab.png": r"t\tab.png",
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "\x9b31m\x7f\x85": r"\x9b31m\x7f\x85",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2028\u2066\ufeff": r"\u2028\u2066\ufeff",
    "caf\udce9.png": r"caf\xe9.png",
    "\U000e0041": r"\U000e0041",
    "👩\u200d🌾 क्\u200cष": "👩\u200d🌾 क्\u200cष",
}


def test_data_and_talk_go_different_ways(capsys):
    show("data")
    say("talk")
    show_json({"a": [1, None, "ü"]})
    out, err = capsys.readouterr()
    assert out == 'data\n{"a": [1, null, "ü"]}\n'
    assert json.loads(out.splitlines()[1]) == {"a": [1, None, "ü"]}
    assert err == "talk\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (ValueError("a  name"), "a  name"),
        (ValueError("\x1b]0;title\x07"), r"\x1b]0;title\x07"),
        (ValueError(), "ValueError"),
        (
            FileNotFoundError(2, "No such file or directory", "gone"),
            "gone: No such file or directory",
        ),
        (FileNotFoundError(2, "Gone", "a\nb"), r"a\nb: Gone"),
        (FileNotFoundError(2, "Gone", b"caf\xe9"), r"caf\xe9: Gone"),
        (OSError(9, "Bad", 7), "7: Bad"),
        (FileExistsError("taken; choose another"), "taken; choose another"),
    ],
)
def test_errors_become_one_line_that_says_something(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize("name", NAMES)
def test_names_are_read_not_obeyed(name):
    assert readable(name) == NAMES[name]


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left_of_any_text(text):
    shown = readable(text)
    assert len(shown.splitlines()) <= 1
    strange = {character for character in shown if not character.isprintable()}
    assert {category(each) for each in strange - {"\u200c", "\u200d"}} <= {"Cn", "Co", "Zs"}
    shown.encode()


def stream(monkeypatch, encoding: str, errors: str = "strict") -> io.BytesIO:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding=encoding, errors=errors))
    return held


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "latin-1", "shift_jis"])
def test_no_encoding_ends_a_list_and_json_holds_the_exact_names(monkeypatch, encoding):
    held = stream(monkeypatch, encoding)
    for name in NAMES:
        show(name)
        show_row([name, name])
        show_json({"path": name})
    lines = held.getvalue().decode(encoding).splitlines()
    assert len(lines) == 3 * len(NAMES)
    assert [json.loads(line)["path"] for line in lines[2::3]] == list(NAMES)
    assert all(
        row.split("\t") == [name, name] for name, row in zip(lines[::3], lines[1::3], strict=True)
    )
    if encoding == "utf-8":
        assert lines[::3] == list(NAMES.values())
    assert "a.png" in lines
    assert "\x1b" not in held.getvalue().decode(encoding)


def matvit(*arguments: str, **streams: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        check=False, text=True, stderr=subprocess.PIPE, **streams,
    )  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")  # noqa: PTH110
@pytest.mark.parametrize("arguments", [["--version"], ["doctor", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_one_line(arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = matvit(*arguments, stdout=full)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("still working"))
    assert line.startswith("error: ")
    assert "No space left on device" in line


def test_reader_that_has_seen_enough_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = matvit("doctor", stdout=writing)
    os.close(writing)
    told = [line for line in done.stderr.splitlines() if not line.startswith("still working")]
    assert (done.returncode, told) == (1, [])


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_traceback(closed, tmp_path):
    code = f"import os; [os.close(n) for n in {closed}]; os.execv(os.sys.executable, " + (
        "[os.sys.executable, '-m', 'app.cli', '--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == (1 if 1 in closed else 0)
    assert done.stderr == (
        "error: standard output: Bad file descriptor\n" if closed == (1,) else ""
    )
