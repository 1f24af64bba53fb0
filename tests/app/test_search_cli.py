"""`matvit search` in all the ways that people ask; expected hits by NumPy from stored vectors."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexing import ImageIndex


@pytest.fixture(scope="module")
def place(shared_photos, tiny_model, tmp_path_factory):
    from indexing import Corpus

    folder = tmp_path_factory.mktemp("search")
    ImageIndex.build(tiny_model, Corpus.open(shared_photos), folder / "i")
    tiny_model.save(folder / "encoder")
    return folder


@pytest.fixture
def index(place) -> ImageIndex:
    return ImageIndex.open(place / "i")


@pytest.fixture
def ask(matvit, place):
    def run(*arguments: object):
        return matvit("search", place / "i", *arguments, "--encoder", place / "encoder")

    return run


def ranking(index: ImageIndex, vector: np.ndarray) -> list[str]:
    scores = index.embeddings[:] @ vector
    return [index.paths[row] for row in np.argsort(-scores, kind="stable")]


def stored(index: ImageIndex, name: str) -> np.ndarray:
    return index.embeddings[index.paths.index(name)]


def paths_in(out: str) -> list[str]:
    return re.findall(r"^ +\d+  -?\d\.\d{4}  (\S+)", out, re.MULTILINE)


def test_an_indexed_image_is_named_by_its_name_or_id_and_not_encoded(ask, index):
    expected = ranking(index, stored(index, "bread/04.png"))
    number = index.ids[index.paths.index("bread/04.png")]
    for word in ("bread/04.png", f"id:{number}"):
        code, out, err = ask(word, "-k", 12)
        assert (code, err) == (0, "")
        assert out.startswith("bread/04.png  [stored, not encoded: 0 GMACs, 0.0 ms + ")
        assert paths_in(out) == expected


def test_several_ask_together_and_one_is_not_wanted(ask, index):
    names = ("apple/00.png", "apple/03.png", "cheese/08.png")
    first, second, third = (stored(index, name) for name in names)
    code, out, _ = ask(*names[:2], "--together", "--not", names[2], "-k", 12, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["query"] == "apple/00.png + apple/03.png - cheese/08.png"
    assert (answer["macs"], answer["encoded"]) == (0, 0)
    expected = ranking(index, (first + second) / 2 - third / 2)
    assert [hit["path"] for hit in answer["hits"]] == expected


def test_without_together_each_asks_less_what_is_not_wanted(ask, index):
    code, out, _ = ask("apple/00.png", "bread/04.png", "--not", "cheese/08.png", "--json", "-k", 5)
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    for answer, name in zip(answers, ("apple/00.png", "bread/04.png"), strict=True):
        vector = stored(index, name) - stored(index, "cheese/08.png") / 2
        assert [hit["path"] for hit in answer["hits"]] == ranking(index, vector)[:5]


def test_compute_is_counted_for_what_is_encoded(ask, index, shared_photos):
    file = shared_photos / "apple/00.png"
    _, out, _ = ask(file, "--json", "--submodel", "S")
    one = json.loads(out)["macs"]
    _, out, _ = ask(file, file, "bread/04.png", "--together", "--json", "--submodel", "S")
    both = json.loads(out)
    assert (both["macs"], both["encoded"]) == (2 * one, 2)
    _, out, _ = ask(file, file, "--together", "--submodel", "S")
    assert "for 2 images" in out.splitlines()[0]


def test_a_folder_and_a_list_ask_one_after_the_other(ask, index, shared_photos, monkeypatch):
    code, out, _ = ask(shared_photos / "bread", "-k", 1, "--exclude-self", "--json")
    assert code == 0
    queries = [json.loads(line)["query"] for line in out.splitlines()]
    assert queries == sorted(map(str, (shared_photos / "bread").iterdir()))
    words = f"{shared_photos}/apple/00.png\nid:3\n\ngone.png\nbread/04.png\r\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(words.encode())))
    code, out, err = ask("-", "-k", 1, "--json")
    assert code == 3
    assert "no such image: gone.png; nor is it the name of an indexed one" in err
    assert [json.loads(line)["query"] for line in out.splitlines()] == [
        f"{shared_photos}/apple/00.png", index.paths[3], "bread/04.png",
    ]  # fmt: skip


def test_a_list_is_answered_as_it_comes(place, tmp_path):
    command = [sys.executable, "-m", "app.cli", "search", str(place / "i"), "-", "-k", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [*command, "--encoder", str(place / "encoder")], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        for word in ("id:1", "id:2"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert "stored, not encoded" in process.stdout.readline()
            assert process.stdout.readline().startswith("   1  1.0000  ")
        process.stdin.close()
    assert process.returncode == 0


def test_filters_and_who_asks_left_out(ask, index):
    expected = [
        path
        for path in ranking(index, stored(index, "apple/03.png"))
        if path.startswith(("apple", "bread")) and path not in ("apple/03.png", "apple/06.png")
    ]
    code, out, _ = ask(
        "apple/03.png", "--in", "apple/**", "--in", "bread/**", "--exclude", "06.png",
        "--exclude-self", "-k", 12,
    )  # fmt: skip
    assert code == 0
    assert paths_in(out) == expected
    _, out, _ = ask("apple/03.png", "--label", "cheese", "-k", 12)
    ordered = ranking(index, stored(index, "apple/03.png"))
    assert paths_in(out) == [path for path in ordered if path.startswith("cheese")]
    code, out, _ = ask("apple/03.png", "--older", "2001-01-01")
    assert (code, out.splitlines()[1].strip()) == (0, "nothing to find: no image passes the filter")
    _, out, _ = ask("apple/03.png", "--newer", "2001-01-01", "-k", 12)
    assert paths_in(out) == ordered


def test_no_good_match_instead_of_ten_bad_ones(ask, index):
    scores = np.sort(index.embeddings[:] @ stored(index, "apple/03.png"))[::-1]
    cut = float((scores[3] + scores[4]) / 2)
    code, out, _ = ask("apple/03.png", "--min-score", cut, "-k", 12)
    assert code == 0
    assert paths_in(out) == ranking(index, stored(index, "apple/03.png"))[:4]
    code, out, _ = ask("apple/03.png", "--exclude-self", "--min-score", "1")
    assert code == 0
    assert out.splitlines()[1].strip() == (f"no good match: the best has {scores[1]:.4f}, below 1")
    _, out, _ = ask("apple/03.png", "--exclude-self", "--min-score", "1", "--json")
    assert json.loads(out)["hits"] == []


def test_csv_has_a_row_for_every_hit(ask, index):
    code, out, _ = ask("apple/03.png", "id:4", "-k", 3, "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["query"] for row in rows] == ["apple/03.png"] * 3 + [index.paths[4]] * 3
    expected = ranking(index, stored(index, "apple/03.png"))[:3]
    assert [row["path"] for row in rows[:3]] == expected
    assert [row["label"] for row in rows] == [row["path"].split("/")[0] for row in rows]
    assert list(rows[0]) == ["query", "rank", "id", "path", "score", "label", "submodel"]


def test_paths_are_files_and_copies_are_those_files(ask, index, shared_photos, tmp_path):
    code, out, _ = ask("apple/03.png", "-k", 3, "--paths", "--copy-to", tmp_path / "new" / "out")
    assert code == 0
    expected = ranking(index, stored(index, "apple/03.png"))[:3]
    assert out.splitlines() == [str(shared_photos / path) for path in expected]
    copies = sorted((tmp_path / "new" / "out").iterdir())
    assert [file.name for file in copies] == [
        f"001-{rank:02}-{Path(path).name}" for rank, path in enumerate(expected, start=1)
    ]
    for file, path in zip(copies, expected, strict=True):
        assert file.read_bytes() == (shared_photos / path).read_bytes()
    code, out, err = ask("apple/03.png", "--copy-to", tmp_path / "new" / "out")
    assert (code, out) == (1, "")
    assert "is not empty; name another folder for the copies" in err


def test_a_page_holds_all_pictures_and_asks_nobody_for_more(ask, index, tmp_path):
    page = tmp_path / "found.html"
    code, _, err = ask("apple/03.png", "bread/04.png", "-k", 3, "--html", page)
    assert (code, err) == (0, f"Page: {page}\n")
    text = page.read_text()
    assert text.count("<img ") == text.count('src="data:image/jpeg;base64,') == 6
    assert not re.search(r'(src|href)="(?!data:)', text)
    for path in ranking(index, stored(index, "apple/03.png"))[:3]:
        assert path in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.png"], 1, "no such image: gone.png; nor is it the name of an indexed one"),
        (["id:99"], 1, "has no image with id 99"),
        (["id:x"], 1, "no such image: id:x"),
        (["id:1", "--label", "aple"], 1, "no class 'aple' in this index; it has apple and 2 more"),
        (["id:1", "--in", ""], 2, "'' is no pattern"),
        (["id:1", "--newer", "soon"], 2, "'soon' is no time; write one such as 2026-01-31"),
        (["id:1", "--min-score", "high"], 2, "a score is a cosine within -1..1, or auto; got"),
        (["id:1", "--min-score", "auto"], 1, "was never tuned with encoder tiny"),
        (["id:1", "--collapse", "98"], 2, "collapse must be a cosine within -1..1, got 98"),
        (["id:1", "--csv", "--json"], 2, "choose one of --csv and --json"),
        (["id:1", "--by", "sum"], 2, "by mean or by best, not by 'sum'"),
        (["id:1", "id:2", "--together", "--not", "gone"], 1, "no such image: gone"),
        (["id:1", "id:99", "--together"], 1, "has no image with id 99"),
    ],
)
def test_mistakes_are_one_clear_line(ask, arguments, code, message):
    found, out, err = ask(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
