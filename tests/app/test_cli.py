"""The command as people use it: what it prints where, and with which exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.preprocess import Preprocess


@pytest.fixture
def index(matvit, photo_folder, encoder, tmp_path) -> Path:
    path = tmp_path / "photos.index"
    assert matvit("index", "build", photo_folder, "--out", path, "--encoder", encoder)[0] == 0
    return path


def test_help_answers_without_importing_torch():
    code = (
        "import sys; sys.argv = ['matvit', '--help']\n"
        "from app.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'faiss', 'streamlit', 'timm')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "index", "search", "evaluate", "doctor", "app"):
        assert command in done.stdout


def test_the_version_is_that_of_what_is_installed(matvit):
    assert matvit("--version") == (0, f"matvit {metadata.version('matvit-retrieval')}\n", "")


def test_search_json_has_the_stable_shape(matvit, index, encoder, photo_folder):
    query = photo_folder / "bread" / "01.png"
    code, out, _ = matvit(
        "search", index, query, "--submodel", "M", "-k", 3, "--json", "--encoder", encoder
    )
    answer = json.loads(out)
    assert code == 0
    assert list(answer) == ["query", "submodel", "macs", "encode_ms", "search_ms", "hits"]
    assert (answer["query"], answer["submodel"]) == (str(query), "M")
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert list(answer["hits"][0]) == ["rank", "id", "path", "score"]


def test_a_query_that_cannot_be_read_does_not_stop_the_others(
    matvit, index, encoder, photo_folder, tmp_path
):
    good = photo_folder / "bread" / "01.png"
    (tmp_path / "bad.jpg").write_text("text")
    code, out, err = matvit(
        "search", index, good, tmp_path / "bad.jpg", good, "--json", "--encoder", encoder
    )
    assert code == 3
    assert len(out.splitlines()) == 2
    assert "bad.jpg: not a readable image" in err
    code, out, _ = matvit("search", index, tmp_path / "bad.jpg", "gone.jpg", "--encoder", encoder)
    assert (code, out) == (1, "")


def test_what_nobody_foresaw_is_one_line_too(matvit, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr("app.doctor.examine", broken)
    code, _, err = matvit("doctor")
    assert code == 1
    assert err == (
        "error: RuntimeError: CUDA out of memory Tried to allocate "
        "(for a traceback, set MATVIT_TRACEBACK=1)\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 1, "out of memory: MemoryError; give it more, or less to do at once"),
        (RecursionError("too deep"), 1, "RecursionError: too deep (for a traceback,"),
        (PermissionError(13, "Permission denied", "a\x1b\nb"), 1, r"a\x1b\nb: Permission denied"),
        (BrokenPipeError(32, "Broken pipe", "a.fifo"), 1, "a.fifo: Broken pipe"),
        (EOFError("no data left"), 1, "EOFError: no data left (for a traceback,"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "end"), 1, "'utf-8' codec can't decode"),
        (KeyError("name"), 1, "KeyError: 'name' (for a traceback,"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (GeneratorExit("of a library"), 1, "GeneratorExit: of a library (for a traceback,"),
    ],
)
def test_no_exception_escapes_as_a_traceback(matvit, monkeypatch, error, code, line):
    def broken(*_):
        raise error

    monkeypatch.setattr("app.doctor.examine", broken)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    found, out, err = matvit("doctor")
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_hits_of_any_name_are_all_listed(index, photo_folder, encoder, tmp_path, encoding):
    names = ["b\nc.png", "\x1b[31mred.png", "日本.png", "\u202egnp.png", "caf\udce9.png"]
    for number, name in enumerate(names):
        shutil.copy(photo_folder / f"apple/{3 * (number % 4):02}.png", photo_folder / name)
    bad = photo_folder / "bad\x1b[2J\n.png"
    bad.write_text("text")

    def run(*arguments: object) -> tuple[int, list[str], str]:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", *map(str, arguments), "--encoder", str(encoder)],
            check=False, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert b"\x1b" not in done.stdout + done.stderr
        return done.returncode, done.stdout.decode(encoding).splitlines(), done.stderr.decode()

    code, _, said = run("index", "build", photo_folder, "--out", tmp_path / "odd.index")
    assert code == 3
    assert r"skipped bad\x1b[2J\n.png: " in said
    ask = ("search", tmp_path / "odd.index", photo_folder / names[0], "-k", 20)
    code, lines, said = run(*ask)
    assert (code, len(lines), said) == (0, 1 + 12 + len(names), "")
    assert any(line.endswith(r"  b\nc.png") for line in lines)
    code, (line,), _ = run(*ask, "--json")
    kept = {*names[:-1], "caf\ufffd.png"}  # an index has text for names
    assert {hit["path"] for hit in json.loads(line)["hits"]} >= kept
    assert json.loads(line)["query"] == str(photo_folder / names[0])


def test_search_at_full_size_finds_the_image_itself(matvit, index, encoder, photo_folder):
    images = [photo_folder / "bread" / "01.png", photo_folder / "cheese" / "02.png"]
    code, out, _ = matvit("search", index, *images, "-k", 1, "--encoder", encoder)
    assert code == 0
    assert "1.0000  bread/01.png" in out
    assert "1.0000  cheese/02.png" in out


def test_evaluate_json_has_the_stable_shape(matvit, index, encoder, photo_folder):
    code, out, _ = matvit(
        "evaluate", index, "--queries", photo_folder, "--submodels", "S,1xS,1xXL", "-k", 5,
        "--json", "--encoder", encoder,
    )  # fmt: skip
    points = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [point["submodel"] for point in points] == ["S", "1xS,1xXL", "XL"]
    assert list(points[0]) == [
        "submodel", "macs", "macs_fraction", "params", "queries", "hit_rate@1", "recall@5",
        "map@r", "overlap@5", "retained_hit_rate@1", "latency_ms_p50", "latency_ms_p95",
        "images_per_s", "pareto", "without_twins",
    ]  # fmt: skip


def test_evaluate_writes_table_plot_csv_and_json(matvit, index, encoder, photo_folder, tmp_path):
    code, out, err = matvit(
        "evaluate", index, "--queries", photo_folder, "--out", tmp_path / "r", "--encoder", encoder
    )
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][-4:] == ["S", "M", "L", "XL"]
    assert "frontier.png" in err
    written = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"frontier.png", "report.csv", "report.json"} <= written


def test_extract_makes_a_small_encoder_that_asks_the_same_index(
    matvit, index, encoder, photo_folder, tmp_path
):
    small = tmp_path / "small"
    code, _, err = matvit("extract", encoder, "--submodel", "S", "--out", small)
    assert code == 0
    assert "tiny S:" in err
    query = photo_folder / "apple" / "00.png"
    answers = [
        matvit("search", index, query, "--submodel", "S", "--json", "--encoder", source)
        for source in (encoder, small)
    ]
    first, second = (json.loads(out)["hits"] for _, out, _ in answers)
    assert [hit["id"] for hit in first] == [hit["id"] for hit in second]
    code, _, err = matvit("extract", encoder, "--submodel", "M", "--out", small)
    assert (code, "is not empty" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "{index}", "{photo}", "--submodel", "huge"], 2, "unknown size 'huge'"),
        (["search", "{index}", "{photo}", "--submodel", "2x65"], 2, "within 1..64, got 65"),
        (["search", "{index}", "{photo}", "-k", "0"], 2, "'-k': 0 is not in the range x>=1"),
        (["search", "{index}", "gone.jpg"], 1, "no such image: gone.jpg"),
        (["search", "gone.index", "{photo}"], 1, "gone.index"),
        (["evaluate", "{index}", "--queries", "gone"], 1, "no such folder or file: gone"),
        (["evaluate", "{index}", "--queries", "{photos}", "--submodels", "9xS"], 2, "9 blocks"),
        (["index", "build", "gone", "--out", "new"], 1, "no such folder or file: gone"),
        (["index", "build", "{empty}", "--out", "new"], 1, "no images in"),
        (["index", "build", "{photos}", "--out", "{index}"], 1, "already holds an index of 12"),
        (["index", "build", "{photos}", "--out", "new", "--encoder", "x"], 1, "no encoder 'x'"),
        (["index", "info", "{photos}"], 1, "photos"),
        (["train", "{photos}", "--out", "run", "--recipe", "x"], 2, "unknown recipe 'x'; known:"),
        (["train", "{empty}", "--out", "run"], 1, "no images in"),
        (
            ["train", "{photos}", "--out", "run", "--epochs", "nan"],
            2,
            "'--epochs': nan is no number",
        ),
        (["train", "{photos}", "--out", "run", "--epochs", "0"], 2, "is not in the range x>=0.001"),
        (
            ["train", "{photos}", "--out", "run", "--max-steps", "0"],
            2,
            "0 is not in the range x>=1",
        ),
        (["train", "{photos}", "--out", "run", "--recipe", "align"], 1, "goes on from an encoder"),
        (["train", "{photos}", "--out", "{photos}"], 1, "is not empty; choose another folder"),
        (["train", "{photos}", "--out", "run", "--epochs", "0.01"], 1, "it takes 13,056 images"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["search"], 2, "Missing argument"),
        (["demo", "--out", "{photos}"], 1, "holds something else"),
        (["app", "gone.index"], 1, "gone.index"),
        (["index", "build", "{photos}", "--out", "new", "--device", "tpu"], 2, "'tpu' is not one"),
    ],
)
def test_mistakes_are_one_clear_line_and_the_right_exit_code(
    matvit, index, encoder, photo_folder, tmp_path, monkeypatch, arguments, code, message
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    places = {
        "index": index,
        "photos": photo_folder,
        "photo": photo_folder / "apple" / "00.png",
        "empty": tmp_path / "empty",
    }
    given = [word.format(**places) for word in arguments]
    if given[0] in ("search", "evaluate") or given[:2] == ["index", "build"]:
        given += [] if "--encoder" in given or len(given) == 1 else ["--encoder", str(encoder)]
    found, out, err = matvit(*given)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(matvit, index, encoder, photo_folder):
    photo = photo_folder / "apple" / "00.png"
    code, _, err = matvit("search", index, photo, "--encoder", encoder, "--device", "cuda")
    assert code == 1
    assert "torch sees no GPU; use auto or cpu" in err


def test_another_encoder_is_refused_naming_both(matvit, index, photo_folder, tmp_path):
    torch.manual_seed(9)
    config = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    other = MatViT(config, Preprocess(img_size=16), "other").save(tmp_path / "other")
    photo = photo_folder / "apple" / "00.png"
    code, _, err = matvit("search", index, photo, "--encoder", other)
    assert code == 1
    assert "was built by encoder tiny" in err
    assert "this is other" in err


def test_another_preprocessing_is_refused(matvit, index, encoder, photo_folder, tmp_path):
    other = Path(shutil.copytree(encoder, tmp_path / "squashed"))
    settings = json.loads((other / "config.json").read_text())
    settings["preprocess"]["fit"] = "squash"
    (other / "config.json").write_text(json.dumps(settings))
    photo = photo_folder / "apple" / "00.png"
    code, _, err = matvit("search", index, photo, "--encoder", other)
    assert code == 1
    assert "preprocessing" in err


def test_an_index_of_an_encoder_that_is_not_bundled_says_what_to_do(matvit, index, photo_folder):
    code, _, err = matvit("search", index, photo_folder / "apple" / "00.png")
    assert code == 1
    assert "was built by encoder 'tiny', which is not bundled" in err


def test_train_makes_an_encoder_from_a_folder_of_classes(matvit, tmp_path, monkeypatch):
    from matvit.training import recipes

    rng = np.random.default_rng(0)
    for number in range(16):
        folder = tmp_path / "data" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        low = 150 * (number % 2)
        pixels = rng.integers(low, low + 100, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    small = recipes.Recipe(
        name="joint64",
        model=MatViTConfig(img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2),
        phases=(recipes.Phase(epochs=2, img_size=64),),
        batch_size=8,
    )
    monkeypatch.setitem(recipes.RECIPES, "joint64", small)
    run = tmp_path / "run"
    code, out, err = matvit(
        "train", tmp_path / "data", "--out", run, "--validation", tmp_path / "data",
        "--cache", tmp_path / "cache", "--decode-size", 80, "--workers", 2, "--evaluate-every", 1,
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert "Trained on 16 images" in err
    assert MatViT.load(run).config.num_classes == 2
    log = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]
    stored = [np.load(file, mmap_mode="r").shape for file in (tmp_path / "cache").rglob("pix*")]
    assert sorted(stored) == [(16, 64, 64, 3), (16, 80, 80, 3)]
    code, _, err = matvit("train", tmp_path / "data", "--out", run)
    assert (code, "resume the run in it" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "steps"),
    [(["--epochs", 3], 6), (["--max-steps", 1], 1), (["--epochs", 1, "--max-steps", 9], 2)],
)
def test_a_run_is_as_long_as_it_is_told(
    matvit, tmp_path, photo_folder, monkeypatch, options, steps
):
    from matvit.training import recipes

    phases = (recipes.Phase(epochs=1, img_size=16), recipes.Phase(epochs=1, img_size=16))
    small = recipes.Recipe(
        name="joint64", phases=phases, batch_size=6,
        model=MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2),
    )  # fmt: skip
    monkeypatch.setitem(recipes.RECIPES, "joint64", small)
    code, _, err = matvit("train", photo_folder, "--out", tmp_path / "run", *options)
    assert code == 0, err
    settings = json.loads((tmp_path / "run/config.json").read_text())
    assert settings["training"]["steps"] == steps


def test_recipes_are_named_in_the_help():
    from app.encoder_cli import RECIPES
    from matvit.training import recipes

    assert list(RECIPES) == list(recipes.RECIPES)


def test_doctor_reports(matvit):
    code, out, _ = matvit("doctor", "--json")
    report = json.loads(out)
    assert code == (1 if report["problems"] else 0)
    assert report["versions"]["torch"]


def test_app_starts_streamlit_on_this_machine_only(matvit, monkeypatch, index, encoder):
    started: list[tuple[str, list[str], dict[str, str]]] = []
    moved: list[Path] = []
    monkeypatch.chdir(index.parent)
    monkeypatch.setattr(os, "chdir", moved.append)
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setenv("PYTHONPATH", "here")
    matvit("app", index.name, "--port", 8600, "--encoder", encoder)
    ((program, command, environment),) = started
    assert program == sys.executable
    assert "--server.address=127.0.0.1" in command
    assert "--server.port=8600" in command
    given = command[command.index("--") + 1 :]
    places = {"index": index, "encoder": encoder, "demo": index.parent / "matvit-demo"}
    assert given == [f"--{name}={place}" for name, place in places.items()]
    assert moved == [Path(command[command.index("run") + 1]).parent]
    assert environment["PYTHONPATH"] == str(index.parent / "here")
