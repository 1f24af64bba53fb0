"""The README's session runs as printed, and its tables are what the results say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.demo import write_digits

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_session_runs_as_printed(tmp_path, monkeypatch, capsys):
    digits = sorted(write_digits(tmp_path / "digits").rglob("*.png"), key=lambda path: path.name)
    for folder, files in (("photos", digits[:200]), ("queries", digits[200:220])):
        for file in files:
            target = tmp_path / folder / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    shutil.copy(digits[300], tmp_path / "query.png")
    (session,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(session, "README.md", "exec"), {})
    *hits, choice = capsys.readouterr().out.splitlines()
    (printed,) = re.findall(r"```text\n(.*?)\n```", README, re.DOTALL)
    *expected, _ = printed.splitlines()
    assert all(re.fullmatch(r"0\.\d{3}  \d/\d{4}\.png", line) for line in hits)
    # Other processors round differently: scores move a little, and close neighbours swap.
    scores, wanted = ([float(line.split()[0]) for line in lines] for lines in (hits, expected))
    assert scores == pytest.approx(wanted, abs=0.01)
    assert re.fullmatch(r"S|M|L|XL|(\dx\w+,?)+", choice)


def test_the_tables_are_what_the_results_say():
    assert "<!-- table: retrieval -->" in README
    check = [sys.executable, str(ROOT / "benchmarks" / "render.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_named(command):
    assert command in README


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
