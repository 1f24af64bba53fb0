from __future__ import annotations

import json
import shutil

import pytest
from tuned import colourful, photos, small_encoder, small_retriever


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("retrieval.speed._DISORDER", 1e9)  # whoever runs the tests may be busy


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    small_retriever(folder)
    small_encoder().save(folder / "encoder")
    return folder


@pytest.fixture
def index(template, tmp_path):
    shutil.copytree(template / "index", tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def encoder(template):
    return ("--encoder", template / "encoder")


@pytest.fixture
def query(tmp_path):
    return colourful(tmp_path / "query.png", 7777)


def test_tune_prints_the_frontier_and_what_it_recommends(matvit, index, encoder):
    code, out, _ = matvit("tune", index, "--size", 80, *encoder)
    assert code == 0
    assert (index / "tuning.json").exists()
    header, *rows = out.splitlines()
    assert header.split()[0] == "submodel"
    marked = [row.split()[0] for row in rows if row.endswith("<-")]
    assert len(marked) == 1
    assert f"recommended: {marked[0]}" in out
    assert "auto: " in out


def test_tune_as_json_is_what_is_stored(matvit, index, encoder):
    code, out, _ = matvit("tune", index, "--size", 80, "--json", *encoder)
    assert code == 0
    stored = json.loads((index / "tuning.json").read_text())["content"]
    assert json.loads(out) == stored


def test_queries_of_ones_own(matvit, index, encoder, tmp_path):
    photos(tmp_path / "queries", 44, first=5000)
    (tmp_path / "queries" / "bad.jpg").write_text("text")
    code, out, err = matvit(
        "tune", index, "--size", 60, "--queries", tmp_path / "queries", "--json", *encoder
    )
    assert code == 3
    assert "1 images could not be used" in err
    assert json.loads(out)["altered"] is False


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--size", "many"], 2, "Invalid value for '--size'"),
        (["--size", "10"], 1, "a sample of at least 40 queries, got 10"),
        (["--target", "3"], 1, "target must be above 0 and below 1, got 3.0"),
    ],
)
def test_wrong_settings_are_one_line(matvit, index, encoder, options, code, message):
    result, out, err = matvit("tune", index, *options, *encoder)
    assert (result, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_search_by_budget_and_auto(matvit, index, encoder, query):
    assert matvit("tune", index, "--size", 80, *encoder)[0] == 0
    full = json.loads(matvit("search", index, query, "--json", *encoder)[1])
    for options in (["--max-gmacs", 1], ["--min-recall", 0.5], ["--max-ms", 10_000]):
        code, out, err = matvit("search", index, query, "--json", *options, *encoder)
        assert (code, err) == (0, "")
        assert json.loads(out)["macs"] <= full["macs"]


def test_auto_shows_the_steps_it_took(matvit, index, encoder, query, monkeypatch):
    from dataclasses import replace

    from indexing import ImageIndex
    from retrieval import Retriever, tune
    from retrieval.tuning.record import Escalation, Operation

    retriever = Retriever(small_encoder(), ImageIndex.open(index))
    made = tune(retriever, size=80, latency=False)
    operation = Operation(level=1.0, thresholds=(1e9,), macs_fraction=1.5, lost=0.0)
    always = Escalation(
        ladder=("S", "XL"), thresholds=(1e9,), uses_labels=False, max_loss=0.1, certainty=0.9,
        calibrated_on=40, reported=operation,
    )  # fmt: skip
    replace(made, escalation=always).store()
    code, out, _ = matvit("search", index, query, "--submodel", "auto", *encoder)
    assert code == 0
    assert "[S -> XL: " in out
    found = json.loads(matvit("search", index, query, "--submodel", "auto", "--json", *encoder)[1])
    assert [step["submodel"] for step in found["steps"]] == ["S", "XL"]
    assert found["macs"] == sum(step["macs"] for step in found["steps"])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--max-gmacs", "1", "--submodel", "S"], 2, "give --submodel or a budget"),
        (["--min-recall", "2"], 2, "min_recall must be within 0..1, got 2.0"),
        (["--max-gmacs", "1"], 1, "was never tuned with encoder small; run `matvit tune"),
        (["--submodel", "auto"], 1, "was never tuned with encoder small; run `matvit tune"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(matvit, index, encoder, query, options, code, message):
    result, out, err = matvit("search", index, query, *options, *encoder)
    assert (result, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_milliseconds_of_a_busy_machine_come_with_a_warning(
    matvit, index, encoder, query, monkeypatch
):
    monkeypatch.setattr("retrieval.speed._DISORDER", 1e-9)
    warning = ", so the machine was busy; measure again when it is idle\n"
    code, out, err = matvit("tune", index, "--size", 80, "--json", *encoder)
    assert (code, err.startswith("warning: "), err.endswith(warning)) == (0, True, True)
    assert json.loads(out)["frontier"]["conditions"]["disorder"] in err
    assert matvit("tune", index, "--size", 80, *encoder)[2].endswith(warning)
    assert matvit("search", index, query, "--max-ms", 10_000, *encoder)[2].endswith(warning)
    assert matvit("search", index, query, "--max-gmacs", 1, *encoder)[2] == ""


def test_a_stale_tuning_is_used_with_a_note(matvit, index, encoder, query):
    assert matvit("tune", index, "--size", 80, *encoder)[0] == 0
    assert matvit("index", "remove", index, "class0/0000.png")[0] == 0
    code, out, err = matvit("search", index, query, "--min-recall", 0.5, *encoder)
    assert code == 0
    assert out
    assert "note: the index was tuned at generation 1 with 90 images" in err
