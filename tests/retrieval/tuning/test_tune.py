from __future__ import annotations

import json
import shutil

import pytest
from filelock import FileLock
from tuned import colourful, photos, picture, small_encoder, small_retriever

from indexing import Corpus, ImageIndex
from matvit import AnchoredMatViT
from retrieval import Retriever, format_conditions, read_tuning, tune
from retrieval.speed import Speed
from retrieval.tuning import journal
from retrieval.tuning import tuner as module
from retrieval.tuning.record import TUNING, TunedFor
from retrieval.tuning.tuner import PROGRESS


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An index that was tuned on altered images of itself."""
    folder = tmp_path_factory.mktemp("tuned")
    retriever = small_retriever(folder)
    tune(retriever, size=80, latency=False)
    return folder


@pytest.fixture
def tuned(template, tmp_path):
    shutil.copytree(template / "index", tmp_path / "index")
    return Retriever(small_encoder(), ImageIndex.open(tmp_path / "index"))


@pytest.fixture
def untuned(tuned):
    (tuned.index.path / TUNING).unlink()
    return tuned


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tuning_of(retriever):
    return read_tuning(retriever.index, retriever.encoder)


def test_what_is_returned_is_what_is_stored(untuned):
    made = tune(untuned, size=80, latency=False)
    assert tuning_of(Retriever(small_encoder(), ImageIndex.open(untuned.index.path))) == made
    assert not (untuned.index.path / PROGRESS).exists()
    assert made.altered
    assert made.selecting == 20
    assert made.frontier.conditions.queries == 20
    assert made.frontier.conditions.in_index == 20


@pytest.mark.parametrize("busy", [False, True])
def test_what_is_stored_says_whether_milliseconds_can_be_relied_on(untuned, monkeypatch, busy):
    asked = []

    def measured(encoder, submodels, pixels, **_):
        asked.append(len(submodels))
        took = {name: 197.0 if busy and name == "S" else 5.0 for name in map(str, submodels)}
        return [Speed(took[str(each)], 0.0, 0.0) for each in submodels]

    monkeypatch.setattr("retrieval.speed.measure_speed", measured)
    made = tune(untuned, size=80)
    assert asked == [len(made.frontier)] * (3 if busy else 1)  # all of them, in turns
    assert bool(made.frontier.conditions.disorder) is busy
    assert tuning_of(untuned) == made
    if busy:
        assert "S took 197 ms and " in format_conditions(made.frontier.conditions)
    tune(untuned, size=80)  # to tune again is the way to measure again
    assert len(asked) == (6 if busy else 2)


def test_tunings_that_say_nothing_of_disorder_are_read(tuned):
    before = tuning_of(tuned)
    path = tuned.index.path / TUNING
    values = journal.read_checked(path)
    del values["frontier"]["conditions"]["disorder"]
    journal.write_checked(path, values)
    assert tuning_of(tuned) == before


def test_the_trained_sizes_are_always_reported_and_full_keeps_everything(tuned):
    frontier = tuning_of(tuned).frontier
    assert {"S", "M", "L", "XL"} <= {point.submodel for point in frontier}
    assert frontier.full.overlap_at_k == 1
    assert frontier.metric == "retained_hit_rate@1"


def test_without_labels_the_overlap_decides(tmp_path):
    retriever = small_retriever(tmp_path, labels=False)
    made = tune(retriever, size=80, latency=False)
    assert made.frontier.metric == "overlap@10"
    assert made.target == 0.8
    assert "of the full encoder's top 10" in made.summary


def test_held_out_queries_can_be_named(untuned, tmp_path):
    made = tune(untuned, photos(tmp_path / "queries", 60, first=5000), size=60, latency=False)
    assert not made.altered
    assert made.frontier.conditions.in_index == 0
    assert sum((made.selecting, made.frontier.conditions.queries)) == 30


def test_an_interrupted_run_goes_on_where_it_stopped(untuned, monkeypatch):
    fresh = small_retriever_run(untuned)
    asked = count_embedded(monkeypatch)
    monkeypatch.setattr(journal, "_SAVE_EVERY_S", 0.0)
    stop_after(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        tune(untuned, size=80, latency=False)
    assert (untuned.index.path / PROGRESS).exists()
    assert tuning_of(untuned) is None
    before = len(asked)
    monkeypatch.setattr(journal.Journal, "advance", lambda self: None)
    resumed = tune(untuned, size=80, latency=False)
    assert set(asked[:before]).isdisjoint(asked[before : before + 1])
    assert resumed.frontier == fresh.frontier
    assert resumed.escalation == fresh.escalation


def test_a_run_is_stopped_by_who_watches_it_and_goes_on_where_it_stopped(untuned):
    fresh, counted = small_retriever_run(untuned), []

    def watch(count):
        counted.append(count)
        if sum(counted) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tune(untuned, size=80, latency=False, on_step=watch)
    assert counted == [0, 1, 1, 1, 1, 1]
    assert (untuned.index.path / PROGRESS).exists()
    assert tuning_of(untuned) is None
    again = []
    resumed = tune(untuned, size=80, latency=False, on_step=again.append)
    assert again[0] == 5
    assert set(again[1:]) == {1}
    assert resumed.frontier == fresh.frontier


def small_retriever_run(retriever):
    made = tune(retriever, size=80, latency=False)
    (retriever.index.path / TUNING).unlink()
    return made


def count_embedded(monkeypatch):
    from retrieval.tuning import trial

    asked = []
    real = trial.embed_each

    def watching(model, pixels, submodels):
        for pair in real(model, pixels, submodels):
            asked.append(pair[0])
            yield pair

    monkeypatch.setattr(trial, "embed_each", watching)
    return asked


def stop_after(monkeypatch, count):
    real = journal.Journal.advance
    seen = []

    def advance(self):
        real(self)
        seen.append(1)
        if len(seen) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "advance", advance)


def test_progress_of_other_settings_or_damaged_is_not_used(untuned, monkeypatch):
    expected = small_retriever_run(untuned)
    for text in ('{"half', json.dumps({"format_version": 1, "sha256": "", "content": {}})):
        (untuned.index.path / PROGRESS).write_text(text)
        assert tune(untuned, size=80, latency=False).frontier == expected.frontier
    stop_after(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        tune(untuned, size=80, seed=1, latency=False)
    monkeypatch.undo()
    assert tune(untuned, size=80, latency=False).frontier == expected.frontier


def test_two_at_once_are_refused(untuned):
    busy = pytest.raises(BlockingIOError, match="being tuned by another process; wait until")
    with FileLock(untuned.index.path / "tuning.lock"), busy:
        tune(untuned, size=80, latency=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, r"k must be within 1..90, the images of the index; got 0"),
        ({"k": 91}, r"k must be within 1..90, the images of the index; got 91"),
        ({"certainty": 2.0}, "certainty at least 0.5 and below 1, got 0.02 and 2.0"),
        ({"target": 1.5}, "target must be above 0 and below 1, got 1.5"),
        ({"max_loss": 0.0}, "max_loss must be above 0 and below 1 and certainty"),
        ({"size": 10}, "a sample of at least 40 queries, got 10"),
    ],
)
def test_settings_out_of_range_are_refused(untuned, settings, message):
    with pytest.raises(ValueError, match=message):
        tune(untuned, **{"size": 80, "latency": False, **settings})


def test_compaction_keeps_a_tuning_valid_and_adding_makes_it_stale(tuned, tmp_path):
    assert tuning_of(tuned).note(tuned.index) is None
    tuned = Retriever(tuned.encoder, tuned.index.remove([int(tuned.index.ids[0])]))
    assert "tuned at generation 1 with 90 images and is now at generation 2 with 89" in (
        tuning_of(tuned).note(tuned.index)
    )
    made = tune(tuned, size=80, latency=False)
    tuned = Retriever(tuned.encoder, tuned.index.compact())
    assert tuning_of(tuned) == made
    assert tuning_of(tuned).note(tuned.index) is None


def test_the_tuning_of_another_encoder_is_none(tuned):
    path = tuned.index.path / TUNING
    other = AnchoredMatViT.join(small_encoder(), small_encoder())
    assert read_tuning(tuned.index, other) is not None
    import torch

    with torch.no_grad():  # the same full size, other small ones
        next(other.backbone.parameters()).mul_(1.5)
    assert read_tuning(tuned.index, other) is None
    assert path.exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "version"])
def test_a_damaged_tuning_is_named_and_never_used(tuned, damage):
    path = tuned.index.path / TUNING
    text = path.read_text()
    path.write_text(
        {
            "cut": text[: len(text) // 2],
            "bit": text.replace('"overlap@10": 1.0', '"overlap@10": 0.9', 1),
            "foreign": "[1, 2]",
            "version": text.replace('"format_version": 1', '"format_version": 7'),
        }[damage]
    )
    assert path.read_text() != text
    with pytest.raises(ValueError, match=r"tuning\.json .*matvit tune"):
        tuning_of(tuned)
    tuned.search(picture())  # a submodel needs no tuning
    tune(tuned, size=80, latency=False)
    assert tuning_of(tuned) is not None


def test_verify_and_compact_leave_a_tuning_alone(tuned):
    before = (tuned.index.path / TUNING).read_bytes()
    report = tuned.index.verify()
    assert report.ok
    assert report.orphans == ()
    tuned.index.compact()
    assert (tuned.index.path / TUNING).read_bytes() == before


def test_the_recommended_submodel_is_the_cheapest_that_reaches_the_target(tuned):
    tuning = tuning_of(tuned)
    picked_by = tuning.selection
    good = [point for point in picked_by if picked_by.recall(point) >= tuning.target]
    chosen = min(good, key=lambda point: point.macs).submodel
    assert tuning.recommended == tuning.frontier.point_of(chosen)
    assert chosen in tuning.summary
    assert {p.submodel for p in picked_by} == {p.submodel for p in tuning.frontier}
    assert picked_by != tuning.frontier  # other queries


def test_what_was_tuned_for_tells_images_kinds_and_encoders_apart(tuned, tmp_path):
    now = TunedFor.of(tuned.index, tuned.encoder)
    assert now == tuning_of(tuned).tuned_for
    corpus = photos(tmp_path / "again", 90)
    same = ImageIndex.build(small_encoder(), corpus, tmp_path / "same")
    other_kind = ImageIndex.build(small_encoder(), corpus, tmp_path / "kind", kind="Flat16")
    fewer = ImageIndex.build(small_encoder(), photos(tmp_path / "few", 60), tmp_path / "fewer")
    found = [TunedFor.of(each, tuned.encoder) for each in (same, other_kind, fewer)]
    assert [each.content == now.content for each in found] == [True, False, False]
    other = TunedFor.of(tuned.index, small_encoder(seed=1))
    assert other.fingerprint != now.fingerprint
    assert other.content == now.content


def test_a_second_interruption_keeps_what_the_first_had_measured(untuned, monkeypatch):
    stop_after(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        tune(untuned, size=80, latency=False)
    monkeypatch.undo()
    before = (untuned.index.path / PROGRESS).read_bytes()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "Trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(untuned, size=80, latency=False)
    assert (untuned.index.path / PROGRESS).read_bytes() == before


def test_a_few_labels_among_many_images_count_as_none(tmp_path):
    """Eighty classes of one image each, and one of two: hardly anything is relevant to anything."""
    for seed in range(80):
        colourful(tmp_path / "photos" / f"class{max(seed, 1):02}" / f"{seed}.png", seed)
    model = small_encoder()
    corpus = Corpus.from_folder(tmp_path / "photos")
    retriever = Retriever(model, ImageIndex.build(model, corpus, tmp_path / "index"))
    for seed in range(3):
        made = tune(retriever, size=80, seed=seed, latency=False)
        assert made.frontier.metric == "overlap@10"
        assert made.target == 0.8
