from __future__ import annotations

import json

import pytest

from app.options import one_line, say, show, show_json


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
        (ValueError(), "ValueError"),
        (
            FileNotFoundError(2, "No such file or directory", "gone"),
            "gone: No such file or directory",
        ),
        (FileExistsError("taken; choose another"), "taken; choose another"),
    ],
)
def test_errors_become_one_line_that_says_something(error, line):
    assert one_line(error) == line
