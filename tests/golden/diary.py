"""A day with the command: what is typed, what it says and writes, and the diary of it.

Nothing here may depend on anything that can change under it; see `world`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

from world import DATA, ENCODER, FEW, TIMES, change, masked_value, photo, write_photo, write_photos

SESSION = DATA / "session.txt"


def run(arguments: Iterable[object], home: Path) -> str:
    """Run the command, and write down the call, its exit code and what it said."""
    from app.cli import main

    typed = ["matvit", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    cache = {"XDG_CACHE_HOME": str(home / "cache")}
    with (
        mock.patch.object(sys, "argv", typed),
        mock.patch.dict(os.environ, cache),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    said = f"$ {' '.join(typed)}\nexit {code}\n"
    for name, stream in (("stdout", out), ("stderr", err)):
        if text := stream.getvalue():
            said += f"--- {name}\n{text}"
    return masked(said, home)


def masked(text: str, home: Path) -> str:
    """Leave out where files lie, and how long anything took."""
    text = re.sub(r"\d+\.\d+ ms", "_ ms", _without_places(text, home))
    text = re.sub(r"[\d,]+ bytes read in \d+\.\d+ s\b", "_ bytes read in _ s", text)
    return "".join(map(_masked_line, text.splitlines(keepends=True)))


def _without_places(text: str, home: Path) -> str:
    for place, name in ((DATA.parent.parent.parent, "PROJECT"), (home, "HOME")):
        text = text.replace(str(place.resolve()), name).replace(str(place), name)
    return text


def _masked_line(line: str) -> str:
    """Mask a JSON object by the names of its values."""
    if not line.startswith("{"):
        return line
    return json.dumps(masked_value(json.loads(line)), ensure_ascii=False) + "\n"


Step = tuple[str, list[object]]


def session(home: Path) -> Iterator[Step]:
    """A day with the command: the name of each step, and what is typed.

    Files that a step needs are written before it is given away, so run each before the next.
    """
    yield from _index_steps(home)
    yield from _question_steps(home)
    yield from _encoder_steps(home)
    yield from _refusals(home)


def _index_steps(home: Path) -> Iterator[Step]:
    photos, index = write_photos(home / "photos", FEW), home / "photos.index"
    encoder = ["--encoder", ENCODER]
    write_photo(photos, "apple/notes.ppm", b"P6 no image either")
    yield "index-build", ["index", "build", photos, "--out", index, *encoder, "--json"]
    change(photos)
    yield "index-add", ["index", "add", index, *encoder, "--json"]
    yield "index-add-nothing", ["index", "add", index, *encoder]
    yield "index-info", ["index", "info", index, "--json"]
    yield "index-info-failures", ["index", "info", index, "--failures", "--json"]
    yield "index-info-text", ["index", "info", index]
    yield "index-remove", ["index", "remove", index, "bread/renamed.ppm", "--id", 7, "--json"]
    write_photo(photos, "apple/notes.ppm", photo(700), 700)
    options = ["--retry-failed", "--remove-missing", "--json"]
    yield "index-add-retry", ["index", "add", index, *encoder, *options]
    yield "index-verify", ["index", "verify", index, "--json"]
    yield "index-compact", ["index", "compact", index, "--json"]
    yield "index-verify-text", ["index", "verify", index]
    search_file = next((index / "index").glob("*.faiss"))
    content = search_file.read_bytes()
    search_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    yield "index-verify-damaged", ["index", "verify", index, "--json"]
    yield "search-damaged", ["search", index, photos / "apple/003.ppm", *encoder]
    yield "index-verify-repair", ["index", "verify", index, "--repair", "--json"]
    named = home / "hnsw.index"
    yield "index-build-kind", [
        "index", "build", photos, "--out", named, *encoder, "--kind", "HNSW", "--json",
    ]  # fmt: skip


def _question_steps(home: Path) -> Iterator[Step]:
    photos, index = home / "photos", home / "photos.index"
    encoder = ["--encoder", ENCODER]
    asked = write_photos(home / "asked", 24, first=300)
    apple, bread = asked / "apple/300.ppm", asked / "bread/301.ppm"
    yield "search", ["search", index, apple, bread, *encoder, "-k", 5, "--json"]
    yield "search-submodel", ["search", index, apple, *encoder, "--submodel", "1xS,1xM", "--json"]
    yield "search-text", ["search", index, apple, *encoder, "--submodel", "S", "-k", 3]
    yield "search-one-missing", ["search", index, apple, home / "gone.ppm", *encoder, "-k", 1]
    sizes = ["--submodels", "S,XL,1xS,1xM", "-k", 5]
    yield "evaluate", ["evaluate", index, "--queries", asked, *encoder, *sizes, "--json"]
    yield "search-untuned", ["search", index, apple, *encoder, "--max-gmacs", 0.1]
    bounds = ["--target", 0.7, "--max-loss", 0.4, "--certainty", 0.6]
    yield "tune", ["tune", index, *encoder, "--size", 48, *bounds, "--json"]
    yield "search-max-gmacs", ["search", index, apple, *encoder, "--max-gmacs", 0.00003, "--json"]
    yield "search-min-recall", ["search", index, apple, *encoder, "--min-recall", 0.5, "--json"]
    yield "search-auto", ["search", index, apple, bread, *encoder, "--submodel", "auto", "--json"]
    yield "search-calibrated", [
        "search", index, apple, *encoder, "--submodel", "S", "--calibrated", "-k", 3, "--json",
    ]  # fmt: skip
    yield "search-no-budget-fits", ["search", index, apple, *encoder, "--max-gmacs", 0.000001]
    few = home / "bundled.index"
    first = ("--encoder", "matvit-tiny64")
    yield "index-build-bundled", ["index", "build", asked, "--out", few, *first, "--json"]
    yield "search-bundled", ["search", few, photos / "cheese/005.ppm", "--submodel", "S", "--json"]
    yield "demo", [
        "demo", "--images", asked, "--out", home / "demo", *encoder, "--device", "cpu", "--json",
    ]  # fmt: skip
    yield "doctor", ["doctor", "--json"]


def _encoder_steps(home: Path) -> Iterator[Step]:
    photos = home / "photos"
    yield "extract", ["extract", ENCODER, "--submodel", "S", "--out", home / "small"]
    yield "search-extracted", [
        "search", home / "photos.index", photos / "apple/003.ppm", "--encoder", home / "small",
        "--json",
    ]  # fmt: skip
    convert = ["convert", ENCODER, "--images", photos, "--device", "cpu", "--json"]
    yield "convert-sorted", [*convert, "--no-training", "--out", home / "sorted"]
    few = ["--epochs", 2, "--batch-size", 16]
    yield "convert", [*convert, *few, "--out", home / "converted"]
    yield "convert-again", [*convert, *few, "--out", home / "converted"]
    six = write_photos(home / "six", 6, first=300)
    yield "train", [
        "train", six, "--recipe", "joint-after-plain", "--init", "matvit-tiny64",
        "--validation", six, "--device", "cpu", "--out", home / "trained",
    ]  # fmt: skip


def _refusals(home: Path) -> Iterator[Step]:
    photos, index, apple = home / "photos", home / "photos.index", home / "asked/apple/300.ppm"
    encoder = ["--encoder", ENCODER]
    build = ["index", "build", photos, *encoder]
    yield "no-command", ["paint"]
    yield "no-option", ["search", index, apple, "--louder"]
    yield "no-index", ["search", home / "no.index", apple]
    yield "no-encoder", ["search", index, apple, "--encoder", home / "nowhere"]
    yield "encoder-not-bundled", ["search", index, apple]
    yield "encoder-of-another-index", ["search", index, apple, "--encoder", "matvit-tiny64"]
    yield "no-image", ["search", index, home / "gone.ppm", *encoder]
    yield "broken-image", ["search", index, photos / "apple/broken.ppm", *encoder]
    yield "no-size", ["search", index, apple, *encoder, "--submodel", "XXL"]
    yield "no-blocks", ["search", index, apple, *encoder, "--submodel", "1xS"]
    yield "no-hits", ["search", index, apple, *encoder, "-k", 0]
    both = ["--submodel", "S", "--max-ms", 5]
    yield "size-and-budget", ["search", index, apple, *encoder, *both]
    yield "two-budgets", ["search", index, apple, *encoder, "--max-gmacs", 1, "--min-recall", 0.9]
    yield "impossible-recall", ["search", index, apple, *encoder, "--min-recall", 2]
    yield "build-over", [*build, "--out", index]
    yield "build-unknown-kind", [*build, "--out", home / "new.index", "--kind", "Fast"]
    yield "build-too-few", [*build, "--out", home / "new.index", "--kind", "IVFPQ"]
    yield "build-no-memory", [*build, "--out", home / "new.index", "--max-memory", "10B"]
    yield "build-odd-memory", [*build, "--out", home / "new.index", "--max-memory", "plenty"]
    yield "build-kind-twice", [
        *build, "--out", home / "new.index", "--kind", "Flat", "--factory", "IVF2,Flat",
    ]  # fmt: skip
    yield "build-odd-factory", [*build, "--out", home / "new.index", "--factory", "PCA8,Flat"]
    (home / "empty").mkdir()
    out = ["--out", home / "new.index"]
    yield "build-of-nothing", ["index", "build", home / "empty", *out, *encoder]
    write_photo(home / "broken", "1.ppm", b"no image")
    yield "build-of-broken", ["index", "build", home / "broken", *out, *encoder]
    yield "build-of-nowhere", ["index", "build", home / "nowhere", *out, *encoder]
    yield "add-another-folder", ["index", "add", index, home / "asked", *encoder]
    yield "remove-nothing", ["index", "remove", index]
    yield "remove-unknown", ["index", "remove", index, "apple/gone.ppm"]
    yield "remove-unknown-id", ["index", "remove", index, "--id", 9999]
    yield "evaluate-no-size", [
        "evaluate", index, "--queries", home / "asked", *encoder, "--submodels", "S,XXL",
    ]  # fmt: skip
    yield "evaluate-no-queries", ["evaluate", index, "--queries", home / "empty", *encoder]
    yield "tune-too-few", ["tune", index, *encoder, "--size", 5]
    yield "tune-odd-target", ["tune", index, *encoder, "--target", 2]
    yield "extract-over", ["extract", ENCODER, "--submodel", "S", "--out", home / "small"]
    yield "extract-no-size", ["extract", ENCODER, "--submodel", "XXL", "--out", home / "other"]
    yield "convert-too-few", [
        "convert", ENCODER, "--images", home / "asked/apple", "--out", home / "other",
    ]  # fmt: skip
    train = ["train", home / "asked", "--out", home / "other"]
    yield "train-no-recipe", [*train, "--recipe", "secret"]
    yield "train-no-start", [*train, "--recipe", "align"]
    yield "train-no-labels", ["train", home / "broken", "--out", home / "other"]
    yield "train-over", ["train", home / "six", "--out", home / "trained"]
    yield "resume-nothing", [*train, "--resume"]
    yield "demo-over", ["demo", "--images", home / "asked", "--out", photos]


FILES = {
    "demo.report.json": "demo/report/report.json",
    "demo.report.csv": "demo/report/report.csv",
    "extract.config.json": "small/config.json",
    "convert.report.json": "converted/report.json",
    "convert.config.json": "converted/config.json",
    "convert.recipe.json": "converted/recipe.json",
    "train.config.json": "trained/config.json",
    "train.log.jsonl": "trained/log.jsonl",
    "tune.tuning.json": "photos.index/tuning.json",
    "build.manifest.json": "hnsw.index/manifest.json",
}
"""Files that are left at the end of the session, and what they are called among the goldens."""


def spend_a_day(home: Path) -> dict[str, str]:
    """Go through the session; what was said and written, by name."""
    home.mkdir(parents=True, exist_ok=True)
    told = {name: run(arguments, home) for name, arguments in session(home)}
    for name, file in FILES.items():
        told[name] = _content(home / file, home)
    return told


def _content(path: Path, home: Path) -> str:
    """What was written, without its times, and without the seal of what has times or places."""
    text = _without_places(path.read_text(encoding="utf-8"), home)
    if path.suffix == ".json":
        values = masked_value(json.loads(text))
        if "sha256" in values:
            values["sha256"] = "_"
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        return "".join(
            json.dumps({key: "_" if TIMES.search(key) else cell for key, cell in row.items()})
            + "\n"
            for row in rows
        )
    return masked(text, home)


def write_diary(told: dict[str, str]) -> None:
    """Keep what a day brought in one file."""
    text = "".join(f"=== {name}\n{each}\n" for name, each in told.items())
    SESSION.write_text(text, encoding="utf-8")


def read_diary() -> dict[str, str]:
    """Read back what `write_diary` wrote."""
    parts = re.split(r"^=== (\S+)\n", SESSION.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text[:-1] for name, text in zip(parts[::2], parts[1::2], strict=True)}
