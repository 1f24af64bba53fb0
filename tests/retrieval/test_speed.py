from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from matvit.config import MatViTConfig
from matvit.model import MatViT
from retrieval import speed
from retrieval.frontier import OperatingPoint
from retrieval.speed import Speed, disorder, measured_ms


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "matvit"


@pytest.fixture
def timed(monkeypatch):
    """Replace the clock by a table: as many milliseconds as hidden units. Lists what was timed."""
    asked = []

    def measure(encoder, submodels, pixels, **options):
        asked.append([str(each) for each in submodels])
        return [Speed(float(sum(each.widths)), 0.0, 0.0) for each in submodels]

    monkeypatch.setattr(speed, "measure_speed", measure)
    return asked


def sizes(model, *names):
    return [model.submodel(name) for name in names]


def test_submodels_take_turns_while_they_are_timed(tiny_model, monkeypatch):
    runs = []
    clock = iter(range(1000))
    monkeypatch.setattr(speed, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(
        speed, "embed", lambda _, pixels, submodel, **__: runs.append((str(submodel), len(pixels)))
    )
    submodels = [tiny_model.submodel(size) for size in ("S", "XL")]
    pixels = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    speeds = speed.measure_speed(tiny_model, submodels, pixels, latency_queries=2)
    warm_up, turn, next_turn = ["S", "XL"], ["S", "XL"], ["XL", "S"]
    batches = [*warm_up, *turn, *next_turn, *turn]
    singles = [*warm_up, *turn, *next_turn]
    assert runs == [(s, 4) for s in batches] + [(s, 1) for s in singles]
    assert speeds == [(1000.0, 1000.0, 4.0)] * 2  # every run took one second of this clock


def test_what_was_measured_is_not_measured_again(tiny_model, cache, timed):
    assert measured_ms(tiny_model, sizes(tiny_model, "S", "XL")) == {"S": 16.0, "XL": 128.0}
    assert measured_ms(tiny_model, sizes(tiny_model, "XL", "M")) == {"XL": 128.0, "M": 32.0}
    assert measured_ms(tiny_model, sizes(tiny_model, "M")) == {"M": 32.0}
    assert timed == [["S", "XL"], ["XL", "M"]]  # one that is missing is timed with the others
    measured_ms(tiny_model, sizes(tiny_model, "M", "S"), again=True)
    assert timed[2:] == [["M", "S"]]
    assert len(list(cache.iterdir())) == 1


def busy(monkeypatch, *rounds):
    """Replace the clock by a list of tables, the last of which goes on for ever."""
    tables, asked = list(rounds), []

    def measure(encoder, submodels, pixels, **options):
        table = tables.pop(0) if len(tables) > 1 else tables[0]
        asked.append([str(each) for each in submodels])
        return [Speed(table[str(each)], 0.0, 0.0) for each in submodels]

    monkeypatch.setattr(speed, "measure_speed", measure)
    return asked


QUIET, BUSY = {"S": 4.0, "M": 5.0, "XL": 6.0}, {"S": 197.0, "M": 5.0, "XL": 90.0}


def test_milliseconds_that_contradict_compute_are_measured_again_and_the_least_counts(
    tiny_model, cache, monkeypatch
):
    asked = busy(monkeypatch, BUSY, {"S": 4.5, "M": 300.0, "XL": 6.0}, QUIET)
    found = measured_ms(tiny_model, sizes(tiny_model, *QUIET))
    assert found == {"S": 4.5, "M": 5.0, "XL": 6.0}
    assert len(asked) == 2
    assert measured_ms(tiny_model, sizes(tiny_model, *QUIET)) == found
    assert len(asked) == 2


def test_machine_that_stays_busy_is_given_up_and_tried_again_later(tiny_model, cache, monkeypatch):
    asked = busy(monkeypatch, BUSY, BUSY, BUSY, QUIET)
    assert measured_ms(tiny_model, sizes(tiny_model, *QUIET)) == BUSY
    assert measured_ms(tiny_model, sizes(tiny_model, *QUIET)) == BUSY
    assert len(asked) == 3
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))
    assert measured_ms(tiny_model, sizes(tiny_model, *QUIET)) == QUIET
    assert len(asked) == 4


def test_disorder_names_the_worst_contradiction():
    def points(**took):
        order = {"S": 1, "M": 2, "L": 2, "XL": 4}
        return [
            OperatingPoint(
                submodel=name, macs=order[name], macs_fraction=order[name] / 4, params=1,
                queries=1, k=1, overlap_at_k=1.0, latency_ms_p50=ms,
            )
            for name, ms in took.items()
        ]  # fmt: skip

    assert disorder(points(S=4.0, M=5.0, L=5.5, XL=6.0)) is None
    assert disorder(points(S=8.9, M=6.0, L=6.0, XL=6.0)) is None  # within what widths explain
    assert disorder(points(S=None, M=None)) is None
    assert disorder([]) is None
    said = disorder(points(S=197.0, M=5.0, L=80.0, XL=90.0))
    assert said == "S took 197 ms and M, which costs no less, 5 ms, so the machine was busy"
    assert "L took 80 ms and M" in (disorder(points(M=5.0, L=80.0)) or "")


def test_other_weights_and_other_threads_are_measured_by_themselves(tiny_model, cache, timed):
    measured_ms(tiny_model, sizes(tiny_model, "S"))
    torch.manual_seed(1)
    other = MatViT(tiny_model.config, tiny_model.preprocess, tiny_model.name)
    measured_ms(other, sizes(other, "S"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        measured_ms(tiny_model, sizes(tiny_model, "S"))
    finally:
        torch.set_num_threads(threads)
    assert len(timed) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"conditions": {}, "milliseconds": {"S": 1}}',
        "KEY",
        "NEGATIVE",
    ],
)
def test_a_memory_that_is_damaged_or_foreign_is_measured_anew(tiny_model, cache, timed, text):
    measured_ms(tiny_model, sizes(tiny_model, "S"))
    (file,) = cache.iterdir()
    stored = json.loads(file.read_text())
    if text == "KEY":
        text = json.dumps({**stored, "milliseconds": [1]})
    elif text == "NEGATIVE":
        text = json.dumps({**stored, "milliseconds": {"S": -1.0}})
    file.write_text(text)
    assert measured_ms(tiny_model, sizes(tiny_model, "S")) == {"S": 16.0}
    assert len(timed) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tiny_model, tmp_path, monkeypatch, timed):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured_ms(tiny_model, sizes(tiny_model, "S")) == {"S": 16.0}
    assert measured_ms(tiny_model, sizes(tiny_model, "S")) == {"S": 16.0}
    assert len(timed) == 2


def test_a_user_without_a_home_is_measured_every_time(tiny_model, monkeypatch, timed):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(speed.Path, "home", homeless)
    for _ in range(2):
        assert measured_ms(tiny_model, sizes(tiny_model, "S")) == {"S": 16.0}
    assert len(timed) == 2


def test_the_real_clock_says_something(cache):
    config = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    model = MatViT(config)
    (ms,) = measured_ms(model, [model.submodel("S")]).values()
    assert 0 < ms < 10_000
