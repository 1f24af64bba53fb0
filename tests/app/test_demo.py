from __future__ import annotations

import json

import pytest
from tuned import photos, small_encoder

from app import demo
from app.demo import MARKER, Demo, run_demo, split
from app.places import write_places
from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT
from retrieval import Tuning


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def of_few(tiny_model, shared_photos, tmp_path_factory) -> Demo:
    """The demo of a dozen photos: too few to recommend anything."""
    return run_demo(tiny_model, tmp_path_factory.mktemp("few"), shared_photos, progress=False)


@pytest.fixture(scope="module")
def of_many(tmp_path_factory) -> Demo:
    """The demo of photos enough."""
    folder = tmp_path_factory.mktemp("many")
    photos(folder / "photos", 70)
    return run_demo(small_encoder(), folder / "demo", folder / "photos", progress=False)


def test_budgets_can_be_given_in_milliseconds_after_the_demo(of_many):
    tuning = Tuning.of(ImageIndex.open(of_many.index), small_encoder())
    assert all(point.latency_ms_p50 > 0 for point in tuning.frontier)


def test_own_photos_are_judged_by_overlap_without_labels(of_few):
    assert {"S", "M", "L", "XL"} <= {point.submodel for point in of_few.frontier}
    assert all(point.hit_rate_at_1 is None for point in of_few.frontier)
    assert all(0 <= point.overlap_at_k <= 1 for point in of_few.frontier)
    report = json.loads((of_few.report / "report.json").read_text())
    assert report["metric"] == "overlap@10"
    written = {path.name for path in of_few.report.iterdir()}
    assert {"frontier.png", "report.csv", "report.json"} <= written


def test_running_it_again_replaces_its_own_work_and_nothing_else(of_few, tiny_model, shared_photos):
    out = of_few.index.parent
    (out / "notes.txt").write_text("mine")
    made = run_demo(tiny_model, out, shared_photos, progress=False)
    assert made.failures == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / MARKER).exists()


def test_a_folder_that_is_not_the_demos_is_refused(tiny_model, photo_folder):
    with pytest.raises(FileExistsError, match="holds something else; choose another folder"):
        run_demo(tiny_model, photo_folder, None, progress=False)


def test_a_report_inside_the_photos_is_refused(tiny_model, photo_folder):
    with pytest.raises(ValueError, match="the report would be indexed; choose --out"):
        run_demo(tiny_model, photo_folder / "demo", photo_folder, progress=False)


def test_unreadable_photos_are_counted(tiny_model, photo_folder, tmp_path):
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    assert run_demo(tiny_model, tmp_path / "demo", photo_folder, progress=False).failures == 1


def test_too_few_photos_are_an_error(tiny_model, photo_folder, tmp_path):
    with pytest.raises(ValueError, match="needs at least 10 images, .* has 4"):
        run_demo(tiny_model, tmp_path / "demo", photo_folder / "apple", progress=False)


@pytest.mark.parametrize(("images", "queries"), [(12, 3), (2000, 400), (5000, 500)])
def test_no_image_is_both_query_and_database(photo_folder, images, queries):
    for number in range(images - 12):
        (photo_folder / f"{number:05}.png").touch()
    database, asking = split(Corpus.open(photo_folder))
    names = [{part.name(i) for i in range(len(part))} for part in (database, asking)]
    assert (len(names[0]), len(names[1])) == (images - queries, queries)
    assert not names[0] & names[1]


def test_with_enough_photos_one_size_is_recommended_and_marked(of_many):
    made = of_many
    assert made.recommended in {point.submodel for point in made.frontier}
    assert made.recommended in made.summary
    report = json.loads((made.report / "report.json").read_text())
    assert report["recommended"] == made.recommended
    assert f"recommended: {made.recommended}" in (made.report / "frontier.svg").read_text()
    tuned = Tuning.of(ImageIndex.open(made.index), small_encoder())
    assert tuned.recommended.submodel == made.recommended


def test_many_copies_of_few_photos_are_few_photos(tmp_path, capsys):
    photos(tmp_path / "photos", 30)
    for number, file in enumerate(sorted((tmp_path / "photos").rglob("*.png"))):
        for copy in range(2):
            file.with_name(f"copy{number}-{copy}.png").write_bytes(file.read_bytes())
    made = run_demo(small_encoder(), tmp_path / "demo", tmp_path / "photos", progress=False)
    assert made.recommended is None
    assert "No size is recommended: tuning needs at least 40 different" in capsys.readouterr().err


def test_with_few_photos_none_is(of_few):
    assert of_few.recommended is None
    assert of_few.summary is None


def test_without_photos_places_in_photographs_are_found_again(tmp_path, monkeypatch):
    def few(folder, *, progress):
        return write_places(folder, ("astronaut", "coins"), views=5)

    monkeypatch.setattr(demo, "write_places", few)
    made = run_demo(MatViT.load(DEFAULT_ENCODER), tmp_path / "demo", None, progress=False)
    full = made.frontier.point_of("XL")
    assert full.queries == 15  # a view of every place
    assert full.hit_rate_at_1 > 0.5  # by chance 1 in 15
