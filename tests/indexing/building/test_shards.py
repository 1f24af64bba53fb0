"""A build that several workers share: the oracle is the plain build, byte by byte."""

from __future__ import annotations

import os
import shutil

import pytest
from toy import ToyEncoder, photo

from indexing import (
    Corpus,
    Decoders,
    ImageIndex,
    IndexMismatchError,
    KindRequest,
    build_from_shards,
    embed_shard,
    stage,
    write,
)
from indexing.store.folder import commit

FLAT = KindRequest()
SIZE, IMAGES = 4, 22  # six shards, the last one of two images
FEW = Decoders(workers=1, batch_size=3)
TYPED = "matvit index shard IMAGES --out"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(write, "SHARD_SIZE", SIZE)


@pytest.fixture
def photos(tmp_path):
    """Photos in two classes; a whole shard of them and two more cannot be read."""
    for number in range(IMAGES):
        file = photo(tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png", number)
        if 4 <= number // 2 < 8 or number in (1, 20):
            file.write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def plain(photos, tmp_path):
    ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "plain.index", decoders=FEW)
    return tmp_path / "plain.index"


def make(photos, folder, number, of, **options):
    chosen = {"decoders": FEW, "encoder": ToyEncoder(), **options}
    encoder = chosen.pop("encoder")
    return embed_shard(encoder, Corpus.open(photos), folder, number, of, **chosen)


def files(path):
    """Content of all that an index consists of."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("LOCK", "manifest.json.prev")
    }


def killed_at(moment, action):
    """Run an action in a process that dies at its second commit: before it, or after it."""
    if not (child := os.fork()):
        commits = []

        def deadly(folder, manifest):
            commits.append(manifest)
            if len(commits) == 2 and moment == "before":
                os._exit(77)
            commit(folder, manifest)
            if len(commits) == 2:
                os._exit(77)

        stage.commit = deadly
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77


@pytest.mark.parametrize("of", [1, 2, 3, 6])
def test_shards_give_the_bytes_of_a_plain_build(photos, plain, tmp_path, of):
    for number in reversed(range(1, of + 1)):
        make(photos, tmp_path / "shards", number, of)
    devices = build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)
    assert files(tmp_path / "i") == files(plain)
    assert devices == {"toy 1 on cpu": of}
    assert ImageIndex.open(tmp_path / "i").verify().ok


def test_so_they_do_where_a_shard_has_more_rows_than_a_page_of_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_SIZE", 1_300)
    for number in range(1_900):
        photo(tmp_path / "photos" / f"{number:04}.png", number % 50)
    usual = Decoders(workers=1)
    for number in (1, 2):
        make(tmp_path / "photos", tmp_path / "shards", number, 2, decoders=usual)
    build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)
    ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "p", decoders=usual)
    assert files(tmp_path / "i") == files(tmp_path / "p")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_two_workers_of_which_one_is_killed_and_replaced(photos, plain, tmp_path, moment):
    killed_at(moment, lambda: make(photos, tmp_path / "shards", 1, 2))
    with pytest.raises(ValueError, match="unfinished|is missing|nothing is stored"):
        build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)
    make(photos, tmp_path / "shards", 2, 2)
    make(photos, tmp_path / "shards", 1, 2)
    make(photos, tmp_path / "shards", 1, 2)  # there is nothing left to do
    build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)
    assert files(tmp_path / "i") == files(plain)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_joining_them_goes_on_where_it_was_killed(photos, plain, tmp_path, moment):
    for number in (1, 2):
        make(photos, tmp_path / "shards", number, 2)

    def join():
        build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)

    killed_at(moment, join)
    join()
    index, whole = ImageIndex.open(tmp_path / "i"), ImageIndex.open(plain)
    assert index.metadata.equals(whole.metadata)
    assert index.failures == whole.failures
    assert (index.embeddings.raw(slice(None)) == whole.embeddings.raw(slice(None))).all()
    with pytest.raises(FileExistsError, match="already holds an index of 12 images"):
        join()


def test_devices_are_recorded_also_of_who_goes_on(photos, tmp_path):
    class OnGpu(ToyEncoder):
        runtime = ToyEncoder.runtime._replace(place="NVIDIA H100")

    made = make(photos, tmp_path / "shards", 1, 2)
    assert made.plan.share.devices == ("toy 1 on cpu",)
    make(photos, tmp_path / "shards", 2, 2, encoder=OnGpu())
    devices = build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)
    assert devices == {"toy 1 on cpu": 1, "toy 1 on NVIDIA H100": 1}
    again = tmp_path / "again"
    killed_at("after", lambda: make(photos, again, 1, 2))
    assert make(photos, again, 1, 2, encoder=OnGpu()).plan.share.devices == tuple(devices)


def test_what_is_missing_is_named_with_the_command_that_makes_it(photos, tmp_path):
    folder = tmp_path / "shards"
    with pytest.raises(FileNotFoundError, match=f"no shards in .*; make them: {TYPED}"):
        build_from_shards(folder, tmp_path / "i", request=FLAT)
    make(photos, folder, 1, 3)
    make(photos, folder, 3, 3)
    with pytest.raises(FileNotFoundError, match=f"shard 2/3 is missing .*{TYPED} .* --shard 2/3"):
        build_from_shards(folder, tmp_path / "i", request=FLAT)
    assert not (tmp_path / "i").exists()
    make(photos, folder, 1, 2)
    with pytest.raises(ValueError, match="holds shards of 2 and of 3; leave those of one"):
        build_from_shards(folder, tmp_path / "i", request=FLAT)


def test_an_unfinished_shard_is_named_with_what_it_has(photos, tmp_path):
    make(photos, tmp_path / "shards", 2, 2)
    killed_at("after", lambda: make(photos, tmp_path / "shards", 1, 2))
    with pytest.raises(ValueError, match=r"shard-00001-of-00002 is unfinished: 8 of 12 images"):
        build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "other"}, "has another encoder than .*: other, 71.*, not toy, 70"),
        ({"decoders": Decoders(workers=1, batch_size=2)}, "another options .*: 2, batches of 2, "),
        ({"photo": "x.png"}, "another list of images than .*: .*, 23 images, .*, not "),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(photos, tmp_path, options, words):
    class Other(ToyEncoder):
        name, fingerprint = "other", "71" * 8

    folder = tmp_path / "shards"
    make(photos, folder, 1, 2)
    if "photo" in options:
        photo(photos / "a" / options.pop("photo"), 77)
    if "encoder" in options:
        options = {"encoder": Other()}
    make(photos, folder, 2, 2, **options)
    with pytest.raises(ValueError, match=words):
        build_from_shards(folder, tmp_path / "i", request=FLAT)


def test_going_on_with_other_options_is_refused(photos, tmp_path):
    killed_at("after", lambda: make(photos, tmp_path, 1, 2))
    other = Decoders(workers=1, batch_size=5)
    with pytest.raises(ValueError, match="as shard 1/2 in batches of 3 and float32, now 1/2 in ba"):
        make(photos, tmp_path, 1, 2, decoders=other)

    class Other(ToyEncoder):
        name, fingerprint = "other", "71" * 8

    with pytest.raises(IndexMismatchError, match="was built by encoder toy"):
        make(photos, tmp_path, 1, 2, encoder=Other())
    photo(photos / "a/new.png", 7)
    with pytest.raises(ValueError, match="begun with another list of images: 22 in"):
        make(photos, tmp_path, 1, 2)


def test_a_damaged_shard_is_named(photos, tmp_path):
    make(photos, tmp_path / "shards", 1, 1)
    file = tmp_path / "shards/shard-00001-of-00001/img_emb/img_emb_000000.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="img_emb_000000.npy is damaged.*make it again: remove"):
        build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)


def test_a_shard_under_the_name_of_another_is_noticed(photos, tmp_path):
    make(photos, tmp_path / "shards", 1, 2)
    first = tmp_path / "shards/shard-00001-of-00002"
    shutil.copytree(first, tmp_path / "shards/shard-00002-of-00002")
    with pytest.raises(ValueError, match="shard-00002-of-00002 is another thing than its name"):
        build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)


def test_more_shards_than_runs_of_images_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="22 images are 6 runs of 4, so .*; got --shard 1/7"):
        make(photos, tmp_path / "shards", 1, 7)
    with pytest.raises(ValueError, match="a shard is one of 1/2 to 2/2, got 3/2"):
        make(photos, tmp_path / "shards", 3, 2)


def test_a_shard_is_no_index_and_a_build_is_no_shard(photos, tmp_path):
    make(photos, tmp_path / "shards", 1, 2)
    one = tmp_path / "shards/shard-00001-of-00002"
    with pytest.raises(ValueError, match=r"is shard 1/2 of an index; .*build --shards .*/shards"):
        ImageIndex.open(one)
    with pytest.raises(ValueError, match="holds shard 1/2 of a build; choose another folder"):
        ImageIndex.build(ToyEncoder(), Corpus.open(photos), one)
    killed_at(
        "after",
        lambda: ImageIndex.build(
            ToyEncoder(), Corpus.open(photos), tmp_path / "x/shard-00002-of-00002", decoders=FEW
        ),
    )
    with pytest.raises(ValueError, match="holds the build of a whole index; choose another"):
        make(photos, tmp_path / "x", 2, 2)


def test_an_index_that_was_begun_with_something_else_is_not_gone_on_with(photos, tmp_path):
    make(photos, tmp_path / "shards", 1, 1)
    photo(photos / "a/new.png", 7)
    killed_at(
        "after",
        lambda: ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "i", decoders=FEW),
    )
    with pytest.raises(ValueError, match="was begun with other images, another encoder or other"):
        build_from_shards(tmp_path / "shards", tmp_path / "i", request=FLAT)
