from __future__ import annotations

import io
import json
from threading import Event, Thread

import numpy as np
import pytest
from photo_index import open_photos, upload
from PIL import Image

from app.page.evaluate import WatchedCorpus, judge, results_table
from app.page.opened import Opened
from app.page.work import StoppedError, Work
from indexing import Corpus, Decoders
from retrieval import ParetoFrontier, evaluate
from retrieval.speed import Speed


@pytest.fixture
def opened(tiny_model, photo_folder, tmp_path) -> Opened:
    return open_photos(tiny_model, photo_folder, tmp_path / "i.index")


def ignore(share: float) -> None:
    pass


def test_a_watched_corpus_reads_the_same_images_and_tells_how_far_it_is(
    photo_folder, tiny_model, monkeypatch
):
    monkeypatch.setattr("app.page.evaluate._BATCH", 5)
    plain, told = Corpus.open(photo_folder), []
    watched = WatchedCorpus.watch(plain, told.append)
    batches = list(watched.decode(tiny_model.preprocess, Decoders(batch_size=1024)))
    (whole,) = plain.decode(tiny_model.preprocess, Decoders(batch_size=12))
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), whole.pixels)
    assert told == [5 / 12, 10 / 12, 1]
    assert watched.class_names == plain.class_names


def test_judging_is_an_evaluation(opened, photo_folder):
    told: list[float] = []
    judged = judge(opened, f" {photo_folder} ", "S,1xS,1xXL", 5, told.append)
    wanted = evaluate(
        opened.retriever, Corpus.open(photo_folder), ["S", "1xS,1xXL"], k=5, latency_queries=0
    )
    assert judged.queries == str(photo_folder)
    assert [point.submodel for point in judged.frontier] == [point.submodel for point in wanted]
    for mine, theirs in zip(judged.frontier, wanted, strict=True):
        assert mine.overlap_at_k == theirs.overlap_at_k
        assert mine.hit_rate_at_1 == theirs.hit_rate_at_1
        assert mine.latency_ms_p50 is not None
    assert told[-1] == 1


def test_queries_that_cannot_be_read_are_counted(opened, photo_folder, tmp_path):
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    assert judge(opened, str(photo_folder), "S", 5, ignore).unreadable == 1


@pytest.mark.parametrize(
    ("queries", "sizes", "error", "message"),
    [
        ("", "S", ValueError, "a folder of query images is needed"),
        ("/nowhere/at/all", "S", FileNotFoundError, "nowhere"),
        (None, "huge", ValueError, "unknown size 'huge'"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error(opened, photo_folder, queries, sizes, error, message):
    with pytest.raises(error, match=message):
        judge(opened, str(photo_folder) if queries is None else queries, sizes, 5, ignore)


def test_downloads_hold_what_was_measured(opened, photo_folder):
    judged = judge(opened, str(photo_folder), "S,M", 5, ignore)
    csv, report, plot = (content for _, _, content in judged.downloads)
    lines = csv.decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["submodel", "S", "M", "XL"]
    assert ParetoFrontier.from_json(report.decode()) == judged.frontier
    assert len(json.loads(report)["points"]) == 3
    assert Image.open(io.BytesIO(plot)).format == "PNG"
    assert [name for name, _, _ in judged.downloads] == [
        "report.csv", "report.json", "frontier.png",
    ]  # fmt: skip


def test_the_table_leaves_out_what_was_not_measured(opened, photo_folder, tmp_path):
    labelled = results_table(judge(opened, str(photo_folder), "S", 5, ignore).frontier)
    assert "hit_rate@1" in labelled.columns
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(photo_folder.rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(file.read_bytes())
    plain = results_table(judge(opened, str(flat), "S", 5, ignore).frontier)
    assert "hit_rate@1" not in plain.columns
    assert list(plain["overlap@5"])[-1] == 1


def held(opened, photo_folder, told: float) -> tuple[Work, Event]:
    """An evaluation that has told how far it is, and waits to go on."""
    begun, go_on = Event(), Event()

    def work(tell):
        tell(told)
        begun.set()
        assert go_on.wait(60)
        return judge(opened, str(photo_folder), "S", 5, tell)

    judging = Work(work)
    assert begun.wait(60)
    return judging, go_on


def test_an_evaluation_goes_on_by_itself_and_tells_how_far_it_is(opened, photo_folder):
    judging, go_on = held(opened, photo_folder, told=0.5)
    assert (judging.told, judging.done, judging.found) == (0.5, False, None)
    go_on.set()
    judging.wait()
    assert judging.done
    assert judging.error is None
    assert judging.told == 1
    assert {point.submodel for point in judging.found.frontier} == {"S", "XL"}


def test_an_evaluation_can_be_stopped(opened, photo_folder):
    judging, go_on = held(opened, photo_folder, told=0.1)
    judging.stop()
    go_on.set()
    judging.wait()
    assert isinstance(judging.error, StoppedError)
    assert (judging.found, judging.told, judging.stopping) == (None, 0.1, True)


def test_an_evaluation_that_fails_says_why(opened):
    judging = Work(lambda tell: judge(opened, "/nowhere/at/all", "S", 5, tell))
    judging.wait()
    assert isinstance(judging.error, FileNotFoundError)
    assert judging.found is None


def test_nobody_asks_while_sizes_are_timed(opened, photo_folder, monkeypatch):
    query = upload(photo_folder / "bread" / "01.png")
    asked: list[bool] = []

    def speed(_, submodels, *__, **___):
        asker = Thread(target=opened.answers.to, args=(query, "S", 3))
        asker.start()
        asker.join(0.2)
        asked.append(not asker.is_alive())
        return [Speed(number, 9, 9) for number, _ in enumerate(submodels, start=1)]

    monkeypatch.setattr("app.page.evaluate.measure_speed", speed)
    judged = judge(opened, str(photo_folder), "S", 5, ignore)
    assert asked == [False]
    assert sorted(point.latency_ms_p50 for point in judged.frontier) == [1, 2]


def test_files_to_take_home_are_made_once(opened, photo_folder):
    judged = judge(opened, str(photo_folder), "S", 5, ignore)
    assert judged.downloads is judged.downloads
