"""The `matvit index` commands: what they print where, and with which exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexing import stage, write
from indexing.corpus.decoding import DecodePool
from indexing.store.folder import commit, writer_lock


@pytest.fixture
def index(matvit, photo_folder, encoder, tmp_path) -> Path:
    path = tmp_path / "photos.index"
    assert matvit("index", "build", photo_folder, "--out", path, "--encoder", encoder)[0] == 0
    return path


@pytest.fixture
def new_photo(photo_folder):
    pixels = np.random.default_rng(9).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo_folder / "bread/new.png")


def test_index_build_and_info(matvit, photo_folder, encoder, tmp_path):
    path = tmp_path / "new.index"
    code, out, _ = matvit("index", "build", photo_folder, "--out", path, "--encoder", encoder)
    assert code == 0
    assert out == f"12 images in {path}, embedded by tiny at full size.\n"
    code, out, _ = matvit("index", "info", path, "--json")
    info = json.loads(out)
    assert (code, info["images"], info["encoder"]["name"]) == (0, 12, "tiny")
    code, out, _ = matvit("index", "info", path)
    assert code == 0
    assert "12 images, 0 failed" in out


def test_kind_is_built_described_and_kept(matvit, photo_folder, encoder, tmp_path, new_photo):
    path = tmp_path / "graph.index"
    code, out, err = matvit(
        "index", "build", photo_folder, "--out", path, "--encoder", encoder,
        "--kind", "HNSW", "--max-memory", "1MB", "--search-device", "cuda",
    )  # fmt: skip
    reached = "ann_recall@10 1.000 on 13 held-out images reaches the target 0.95"
    assert (code, out) == (0, f"13 images in {path}, embedded by tiny at full size.\n")
    assert f"HNSW (HNSW32,Flat): {reached}\n" in err
    assert matvit("index", "remove", path, "--id", 0)[0] == 0
    assert (
        f"HNSW (HNSW32,Flat): {reached.replace('13', '12')}\n"
        in matvit("index", "compact", path)[2]
    )
    out = matvit("index", "info", path)[1]
    assert "kind        HNSW (HNSW32,Flat), generation 3\n" in out
    assert f"search      {reached.replace('13', '12')}\n" in out
    info = json.loads(matvit("index", "info", path, "--json")[1])
    assert info["request"] == {
        "kind": "HNSW", "factory": None, "max_memory_bytes": 1_000_000, "device": "cuda",
    }  # fmt: skip


def test_factory_string_is_built(matvit, photo_folder, encoder, tmp_path):
    path = tmp_path / "i"
    build = ("index", "build", photo_folder, "--out", path, "--encoder", encoder)
    assert matvit(*build, "--factory", "IVF2,SQ8")[0] == 0
    assert "kind        factory (IVF2,SQ8), generation 1\n" in matvit("index", "info", path)[1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--kind", "Annoy"], 2, "unknown kind 'Annoy'; known: auto, Flat, Flat16, HNSW"),
        (["--max-memory", "lots"], 2, "must be a size such as 4GB or 512MiB, got 'lots'"),
        (["--max-memory", "0GB"], 2, "max_memory must be at least 1 byte, got 0"),
        (["--kind", "HNSW", "--factory", "SQ8"], 2, "are both given; leave one out"),
        (["--exclude", "[z-a]*"], 2, "'[z-a]*' is no pattern; write something such as '*.gif'"),
        (["--include", "/"], 2, "'/' is no pattern; write something such as '*.gif'"),
        (["--factory", "PCA8,Flat"], 1, "factory string 'PCA8,Flat' is not accepted"),
        (["--kind", "IVFPQ"], 1, "needs at least 256 images, there are 12; use Flat"),
        (["--kind", "Flat", "--max-memory", "800B"], 1, "needs 864 bytes for 12 images"),
        (["--max-memory", "10B"], 1, "no kind of index holds 12 images in 10 bytes"),
    ],
)
def test_kind_that_cannot_be_built_is_one_line_and_leaves_nothing(
    matvit, photo_folder, encoder, tmp_path, options, code, message
):
    out = tmp_path / "i"
    found, text, err = matvit(
        "index", "build", photo_folder, "--out", out, "--encoder", encoder, *options
    )
    assert (found, text, err.count("\n")) == (code, "", 1)
    assert message in err
    assert not out.exists()


def test_index_that_lost_its_kind_says_so(matvit, photo_folder, encoder, tmp_path):
    path = tmp_path / "i"
    build = ("index", "build", photo_folder, "--out", path, "--encoder", encoder)
    assert matvit(*build, "--factory", "IVF12,Flat")[0] == 0
    assert matvit("index", "remove", path, "--id", 0)[0] == 0
    reason = "kind factory (IVF12,Flat) needs at least 12 images, there are 11"
    assert f"Flat instead of IVF12,Flat: {reason}" in matvit("index", "compact", path)[2]
    assert f"note        Flat instead of IVF12,Flat: {reason}" in matvit("index", "info", path)[1]


def test_bad_images_are_named_and_counted_and_the_exit_code_says_so(
    matvit, photo_folder, encoder, tmp_path
):
    (photo_folder / "apple" / "letter.jpg").write_text("Dear reader")
    code, out, err = matvit(
        "index", "build", photo_folder, "--out", tmp_path / "i", "--encoder", encoder, "--json"
    )
    assert code == 3
    assert json.loads(out)["images"] == 12
    assert "skipped apple/letter.jpg: not a readable image: cannot identify image file" in err
    assert "1 images could not be used" in err
    code, out, _ = matvit("index", "info", tmp_path / "i", "--failures")
    assert code == 0
    assert "apple/letter.jpg" in out


def test_image_that_is_not_there_is_named_once(matvit, photo_folder, encoder, tmp_path):
    (photo_folder / "gone.png").symlink_to("nowhere")
    code, _, err = matvit(
        "index", "build", photo_folder, "--out", tmp_path / "i", "--encoder", encoder
    )
    assert code == 3
    assert "skipped gone.png: No such file or directory\n" in err


def test_images_that_could_not_be_read_are_counted_by_reason(
    matvit, photo_folder, encoder, tmp_path
):
    for number in range(7):
        (photo_folder / f"letter-{number}.jpg").write_text("Dear reader")
    _, _, err = matvit(
        "index", "build", photo_folder, "--out", tmp_path / "i", "--encoder", encoder
    )
    assert "... and 2 more; see them with `matvit index info INDEX --failures`" in err
    assert "By error: 7 UnidentifiedImageError" in err


def test_add_takes_what_is_new_where_the_images_were(matvit, index, encoder, new_photo):
    code, out, _ = matvit("index", "add", index, "--encoder", encoder)
    expected = "13 images in {}: 1 added, 0 changed, 0 renamed, 0 removed, 12 as before.\n"
    assert (code, out) == (0, expected.format(index))
    code, out, _ = matvit("index", "add", index, "--encoder", encoder, "--json")
    assert json.loads(out) == {
        "path": str(index), "added": 0, "changed": 0, "renamed": 0, "removed": 0,
        "unchanged": 13, "failed": 0, "images": 13, "generation": 2,
    }  # fmt: skip


def test_options_of_decoding_reach_the_decoders(
    matvit, index, photo_folder, encoder, new_photo, monkeypatch
):
    asked = []
    made = DecodePool.__init__

    def noting(self, preprocess, decoders):
        asked.append((decoders.workers, decoders.processes))
        made(self, preprocess, decoders)

    monkeypatch.setattr(DecodePool, "__init__", noting)
    decoding = ("--encoder", encoder, "--workers", "1", "--processes")
    again = index.with_name("again.index")
    assert matvit("index", "build", photo_folder, "--out", again, *decoding)[0] == 0
    assert matvit("index", "add", index, *decoding)[0] == 0
    assert matvit("index", "add", index, "--encoder", encoder)[0] == 0
    assert asked == [(1, True), (1, True), (None, False)]


def test_add_names_what_it_could_not_read_and_retries_it_when_asked(
    matvit, index, photo_folder, encoder
):
    (photo_folder / "letter.jpg").write_text("Dear reader")
    code, _, err = matvit("index", "add", index, photo_folder, "--encoder", encoder)
    assert code == 3
    assert "skipped letter.jpg: not a readable image" in err
    assert matvit("index", "add", index, "--encoder", encoder)[0] == 0
    assert matvit("index", "add", index, "--encoder", encoder, "--retry-failed")[0] == 3


def test_add_removes_what_is_gone_when_asked(matvit, index, photo_folder, encoder):
    (photo_folder / "bread/01.png").unlink()
    code, out, _ = matvit("index", "add", index, "--encoder", encoder, "--remove-missing", "--json")
    assert (code, json.loads(out)["removed"]) == (0, 1)


def test_remove_compact_and_verify(matvit, index):
    code, out, _ = matvit("index", "remove", index, "bread/01.png", "--id", 0, "--id", 5)
    assert (code, out) == (0, f"9 images in {index}: 3 removed.\n")
    assert "removed     3 rows" in matvit("index", "info", index)[1]
    code, out, _ = matvit("index", "verify", index, "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["images"], report["damaged"]) == (0, True, 9, [])
    code, out, _ = matvit("index", "compact", index, "--json")
    report = json.loads(out)
    assert (code, report["rows"], report["images"]) == (0, 3, 9)
    assert report["bytes"] > 0
    code, out, _ = matvit("index", "verify", index)
    assert code == 0
    assert out.startswith(f"{index} is whole: 9 images, 4 files, ")
    code, out, _ = matvit("index", "compact", index)
    assert (code, out) == (0, f"9 images in {index}: 0 dead rows gone, 0 bytes freed.\n")


def test_verify_names_damage_and_repairs_what_it_can(matvit, index):
    damaged = index / "index/knn_g1.faiss"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, err = matvit("index", "verify", index)
    assert code == 1
    assert "damaged  index/knn_g1.faiss: it has" in out
    assert "`matvit index verify INDEX --repair` mends this" in err
    code, out, _ = matvit("index", "verify", index, "--repair")
    assert code == 0
    assert "repaired index/knn_g1.faiss" in out
    assert matvit("index", "info", index)[0] == 0
    embeddings = index / "img_emb/img_emb_000000.npy"
    embeddings.write_bytes(embeddings.read_bytes()[:-1])
    code, out, err = matvit("index", "verify", index, "--repair", "--json")
    assert code == 1
    assert [damage["file"] for damage in json.loads(out)["damaged"]] == [
        "img_emb/img_emb_000000.npy"
    ]
    assert err == ""


def test_interrupted_build_says_how_to_go_on_and_does(
    matvit, photo_folder, encoder, tmp_path, monkeypatch
):
    path = tmp_path / "i"
    build = ("index", "build", photo_folder, "--out", path, "--encoder", encoder)

    def late(folder, manifest):
        commit(folder, manifest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "commit", late)
        patch.setattr(write, "SHARD_SIZE", 5)
        code, out, err = matvit(*build)
    typed = " ".join(["matvit", *map(str, build)])
    assert (code, out) == (130, "")
    assert err == f"Stopped; 5 images are stored. To go on, type again: {typed}\n"
    code, _, err = matvit("index", "info", path)
    assert code == 1
    assert "is unfinished: 5 of 12 images are stored; run the same `matvit index build`" in err
    assert matvit(*build)[0] == 0
    assert matvit("index", "verify", path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", "{index}", "{index}"], 1, "no images in"),
        (["add", "{index}", "{photos}/bread"], 1, "so the folder"),
        (["add", "gone.index"], 1, "no index at gone.index"),
        (["remove", "{index}"], 2, "name the images to remove"),
        (["remove", "{index}", "x.png"], 1, "has no image called 'x.png'; nothing was removed"),
        (["remove", "{index}", "--id", "99"], 1, "has no image with id 99; nothing was removed"),
        (["remove", "{index}", "--id", "-1"], 2, "-1 is not in the range 0<=x"),
        (["remove", "{index}", "--id", str(2**63)], 2, "is not in the range"),
        (["remove", "{index}", "a\udcff"], 1, "has no image called 'a\ufffd'; nothing was removed"),
        (["compact", "gone.index"], 1, "no index at gone.index"),
        (["verify", "gone.index"], 1, "no index at gone.index"),
        (["build", "{photos}", "--out", "{index}"], 1, "add to it with `matvit index add`"),
        (["add", "{index}", "--workers", "0", "--processes"], 2, "at least 1 of --workers"),
    ],
)
def test_mistakes_are_one_clear_line_and_the_right_exit_code(
    matvit, index, photo_folder, encoder, tmp_path, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    given = [word.format(index=index, photos=photo_folder) for word in arguments]
    given += ["--encoder", str(encoder)] if given[0] in ("add", "build") else []
    found, out, err = matvit("index", *given)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_second_writer_is_told_who_the_first_is(matvit, index):
    with writer_lock(index):
        code, _, err = matvit("index", "compact", index)
    assert code == 1
    assert "is being written by process" in err


def test_progress_is_shown_to_people_only(matvit, index, encoder, new_photo, monkeypatch):
    assert matvit("index", "add", index, "--encoder", encoder)[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "img/s" in matvit("index", "add", index, "--encoder", encoder)[2]
    assert "verifying" in matvit("index", "verify", index)[2]
