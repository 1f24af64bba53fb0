"""Reports: a hand-written table, files read back by other libraries, the data of the plot.

Mutants these tests must catch: a point missing from table or plot; the full encoder's line at 1
instead of 100 %; a cost in MACs on an axis of GMACs; half a report left by a failure.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import retrieval
from retrieval import report
from retrieval.frontier import Conditions, OperatingPoint, ParetoFrontier
from retrieval.plotting import plot

CONDITIONS = Conditions(
    encoder="tiny", fingerprint="0123456789abcdef", images=1000, queries=500, unreadable=1,
    without_relevant=0, in_index=3, device="cpu, 2 threads", precision="float32",
)  # fmt: skip


def point(submodel, macs_fraction, hit_rate, **changes):
    values = {
        "macs": round(macs_fraction * 50_000_000),
        "params": round(macs_fraction * 5_000_000),
        "queries": 500,
        "k": 10,
        "hit_rate_at_1": hit_rate,
        "recall_at_k": 0.25,
        "map_at_r": 0.125,
        "overlap_at_k": macs_fraction,
        "retained_hit_rate_at_1": hit_rate / 0.8,
        "latency_ms_p50": 3.125,
        "latency_ms_p95": 4.5,
        "images_per_s": 1234.5,
    }
    return OperatingPoint(submodel=submodel, macs_fraction=macs_fraction, **(values | changes))


FRONTIER = ParetoFrontier(
    [point("S", 0.44, 0.72), point("1xS,1xXL", 0.72, 0.7), point("XL", 1.0, 0.8)],
    conditions=CONDITIONS,
)
UNLABELLED = ParetoFrontier(
    [
        replace(
            each, hit_rate_at_1=None, recall_at_k=None, map_at_r=None, retained_hit_rate_at_1=None
        )
        for each in FRONTIER
    ]
)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_table_equals_the_hand_written_one():
    assert report.format_table(FRONTIER).splitlines() == [
        "submodel   GMACs  of full  M params  retained  hit_rate@1  recall@10   map@r  overlap@10"
        "  p50 ms  p95 ms  images/s  best",
        "S         0.0220    44.0%      2.20    0.9000      0.7200     0.2500  0.1250      0.4400"
        "    3.12    4.50     1,234     *",
        "1xS,1xXL  0.0360    72.0%      3.60    0.8750      0.7000     0.2500  0.1250      0.7200"
        "    3.12    4.50     1,234",
        "XL        0.0500   100.0%      5.00    1.0000      0.8000     0.2500  0.1250      1.0000"
        "    3.12    4.50     1,234     *",
    ]


def test_columns_that_nothing_was_measured_for_are_left_out():
    untimed = [
        replace(each, latency_ms_p50=None, latency_ms_p95=None, images_per_s=None)
        for each in UNLABELLED
    ]
    header, *rows = report.format_table(untimed).splitlines()
    assert header.split() == [
        "submodel",
        "GMACs",
        "of",
        "full",
        "M",
        "params",
        "overlap@10",
        "best",
    ]
    assert len(rows) == 3


def test_markdown_table_has_the_cells_of_the_text_table():
    header, rule, *rows = report.format_table(FRONTIER, markdown=True).splitlines()
    assert re.fullmatch(r"\| :-+ (\| -+: )+\|", rule)
    text = report.format_table(FRONTIER).splitlines()
    for line, expected in zip([header, *rows], text, strict=True):
        assert line.count("|") == rule.count("|")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert [c for c in cells if c] == re.split(r"\s{2,}", expected)


def test_gmacs_keep_three_digits_however_small_the_encoder():
    tiny = point("S", 0.5, 0.8, macs=123_456)
    assert report.format_table([tiny]).splitlines()[1].split()[1] == "0.000123"
    large = point("S", 0.5, 0.8, macs=17_563_000_000)
    assert report.format_table([large]).splitlines()[1].split()[1] == "17.6"


def test_conditions_in_words():
    assert report.format_conditions(CONDITIONS) == (
        "500 queries (1 more unreadable, 3 in the index themselves) against 1,000 images, "
        "tiny on cpu, 2 threads, float32"
    )
    plain = replace(CONDITIONS, unreadable=0, in_index=0, without_relevant=None)
    assert report.format_conditions(plain).startswith("500 queries against 1,000 images")


def test_csv_has_the_values_of_the_json():
    rows = list(csv.DictReader(report.to_csv(UNLABELLED).splitlines()))
    for row, each in zip(rows, UNLABELLED, strict=True):
        expected = each.to_dict()
        assert row == {key: "" if v is None else str(v) for key, v in expected.items()}


@pytest.mark.parametrize("write", [report.format_table, report.to_csv])
def test_a_table_of_nothing_is_an_error(write):
    with pytest.raises(ValueError, match="at least one operating point"):
        write([])


def test_report_files_can_be_read_by_others(tmp_path):
    files = report.write_report(FRONTIER, tmp_path / "new" / "report")
    assert [file.name for file in files] == [
        "report.json", "report.csv", "frontier.png", "frontier.svg",
    ]  # fmt: skip
    assert sorted(files) == sorted((tmp_path / "new" / "report").iterdir())
    assert ParetoFrontier.from_json(files[0].read_text()) == FRONTIER
    assert len(list(csv.DictReader(files[1].read_text().splitlines()))) == 3
    with Image.open(files[2]) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (1920, 1120))
    assert ElementTree.fromstring(files[3].read_text()).tag.endswith("svg")


def test_the_same_numbers_give_the_same_files(tmp_path):
    first = report.write_report(FRONTIER, tmp_path / "first")
    again = report.write_report(FRONTIER, tmp_path / "again")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    files = report.write_report(FRONTIER, tmp_path)
    before = [file.read_bytes() for file in files]

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(retrieval, "draw", fail, raising=False)
    with pytest.raises(MemoryError):
        report.write_report(UNLABELLED, tmp_path)
    assert [file.read_bytes() for file in files] == before
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_plot_shows_every_point_in_gmacs_and_percent():
    axes = plot(FRONTIER).axes[0]
    dominated, trained = (np.asarray(drawn.get_offsets()) for drawn in axes.collections)
    np.testing.assert_allclose(dominated, [[0.036, 87.5]])
    np.testing.assert_allclose(trained, [[0.022, 90], [0.05, 100]])
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.022, 90], [0.05, 100]])


def test_plot_names_trained_sizes_and_axes():
    figure = plot(FRONTIER, title="Groceries", caption="500 queries")
    assert [re.sub(r"[$\\bf{}]", "", text) for text in texts(figure)[:2]] == [
        "S  90.0 %", "XL  100.0 %",
    ]  # fmt: skip
    assert figure.get_suptitle() == "Groceries"
    assert figure.get_supxlabel() == "500 queries"
    assert figure.axes[0].get_xlabel() == "compute per query (GMACs)"
    assert figure.axes[0].get_ylabel() == "hit rate@1, share of the full encoder's"


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("overlap@10", "share of the full encoder's top 10 found"),
        ("map@r", "MAP@R"),
        ("hit_rate@1", "hit rate@1"),
    ],
)
def test_plot_names_the_metric_it_ranks_by(metric, label):
    ranked = ParetoFrontier(FRONTIER, metric=metric)
    assert plot(ranked).axes[0].get_ylabel() == label


def test_plot_draws_the_level_of_the_full_encoder_if_it_was_measured():
    ranked = ParetoFrontier(FRONTIER, metric="hit_rate@1")
    figure = plot(ranked)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), [80, 80])
    assert "full encoder" in texts(figure)
    partial = plot(ParetoFrontier(FRONTIER.points[:2]))
    assert len(partial.axes[0].lines) == 1
    assert "full encoder" not in texts(partial)


def test_plot_of_a_single_untrained_point_can_be_drawn():
    figure = plot(ParetoFrontier([point("1xS,1xXL", 0.72, 0.7)]))
    figure.canvas.draw()
    assert texts(figure) == []


def test_plot_leaves_no_global_state():
    plot(FRONTIER)
    assert plt.get_fignums() == []


def test_a_recommended_submodel_is_marked_in_table_json_and_plot(tmp_path):
    table = report.format_table(FRONTIER, recommended="1xS,1xXL").splitlines()
    assert [line.endswith("<-") for line in table] == [False, False, True, False]
    report.write_report(FRONTIER, tmp_path, recommended="1xS,1xXL")
    assert json.loads((tmp_path / "report.json").read_text())["recommended"] == "1xS,1xXL"
    assert ParetoFrontier.from_json((tmp_path / "report.json").read_text()) == FRONTIER
    legend = plot(FRONTIER, recommended="1xS,1xXL").axes[0].get_legend()
    assert "recommended: 1xS,1xXL" in [text.get_text() for text in legend.get_texts()]


def test_what_a_point_saves_and_costs_is_said_in_a_few_words():
    says = [FRONTIER.describe(each) for each in FRONTIER]
    assert says[0] == (
        "S saves 56% of the compute and costs 8.0 points of hit_rate@1 (0.720, full 0.800)"
    )
    assert says[2] == "XL is the full encoder: it saves nothing and loses nothing"
    assert UNLABELLED.describe(UNLABELLED.points[1]) == (
        "1xS,1xXL saves 28% of the compute and finds 72% of the full encoder's top 10"
    )
