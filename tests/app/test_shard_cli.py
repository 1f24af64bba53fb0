"""`matvit index shard` and `index build --shards`, as people type them."""

from __future__ import annotations

import pytest

from indexing import write


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(write, "SHARD_SIZE", 5)


def test_shards_are_made_and_committed(matvit, photo_folder, encoder, tmp_path):
    (photo_folder / "apple/bad.png").write_text("no image")
    given = ("--encoder", encoder, "--batch-size", 2)
    for shard, stored, code in (("2/2", 8, 0), ("1/2", 4, 3)):
        words = ("index", "shard", photo_folder, "--out", tmp_path / "s", "--shard", shard, *given)
        got, out, _ = matvit(*words)
        assert got == code
        assert out.startswith(f"{stored} of 13 images in {tmp_path}/s/shard-0000{shard[0]}-of")
    code, out, err = matvit("index", "build", "--shards", tmp_path / "s", "--out", tmp_path / "i")
    assert (code, out) == (3, f"12 images in {tmp_path / 'i'}, embedded by tiny at full size.\n")
    assert "skipped apple/bad.png" in err
    assert "Embedded by torch " in err
    plain = ("index", "build", photo_folder, "--out", tmp_path / "p", *given)
    assert matvit(*plain)[0] == 3
    for name in ("manifest.json", "img_emb/img_emb_000001.npy", "index/knn_g1.faiss"):
        assert (tmp_path / "i" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_what_is_no_shard_is_bad_usage(matvit, photo_folder, tmp_path, shard):
    code, _, err = matvit("index", "shard", photo_folder, "--out", tmp_path, "--shard", shard)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--shard is one of 1/N to N/N, such as 2/8; got '{shard}'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the IMAGES, or what was made of them with --shards"),
        (["{photos}", "--shards", "s"], "--shards says what was embedded: leave out IMAGES"),
        (["--shards", "s", "--exclude", "*.gif"], "leave out IMAGES, --encoder, --include"),
    ],
)
def test_images_or_shards_are_named(matvit, photo_folder, tmp_path, words, message):
    typed = [word.format(photos=photo_folder) for word in words]
    code, _, err = matvit("index", "build", *typed, "--out", tmp_path / "i")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_missing_shard_is_named_in_one_line(matvit, photo_folder, encoder, tmp_path):
    made = ("index", "shard", photo_folder, "--out", tmp_path / "s", "--encoder", encoder)
    assert matvit(*made, "--shard", "1/2")[0] == 0
    code, _, err = matvit("index", "build", "--shards", tmp_path / "s", "--out", tmp_path / "i")
    assert (code, err.count("\n")) == (1, 1)
    assert "shard 2/2 is missing" in err
