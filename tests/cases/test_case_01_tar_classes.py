"""The class of an image in a tar archive is that of no other image, whatever dots there are."""

from __future__ import annotations

import io
import tarfile

import pytest

from indexing import Corpus


def archive(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def classes(path):
    corpus = Corpus.open(path)
    numbers = corpus.labels.tolist() if corpus.labels is not None else [-1] * len(corpus)
    return {
        corpus.name(row).split("/", 1)[1]: corpus.class_names[number] if number >= 0 else None
        for row, number in enumerate(numbers)
    }


@pytest.mark.parametrize("ending", [".cls", ".CLS", ".json"])
@pytest.mark.parametrize("name", ["a.tar", "a.TAR"])
def test_file_names_with_dots_have_classes_of_their_own(tmp_path, name, ending):
    members = []
    for number in range(8):
        said = b"%d" % (number % 2)
        said = b'{"label": %s, "width": 3}' % said if ending == ".json" else said
        stem = f"2020.d/IMG.2020.{number:02d}"
        members += [(f"{stem}.jpg", b"x"), (f"{stem}{ending}", said)]
    archive(tmp_path / name, *members)
    for place in (tmp_path, tmp_path / name):
        corpus = Corpus.open(place)
        assert (corpus.labels.tolist(), corpus.class_names) == ([0, 1] * 4, ["0", "1"])
        assert corpus.left_out.in_words() == []


def test_one_class_may_be_that_of_several_images_as_webdataset_has_it(tmp_path):
    members = [("1.left.jpg", b"x"), ("1.right.jpg", b"x"), ("1.cls", b"cat"), ("2.jpg", b"x")]
    found = classes(archive(tmp_path / "a.tar", *members))
    assert found == {"1.left.jpg": "cat", "1.right.jpg": "cat", "2.jpg": None}


def test_class_of_one_view_is_not_that_of_another(tmp_path):
    members = [("1.left.jpg", b"x"), ("1.right.jpg", b"x"), ("1.left.cls", b"cat")]
    found = classes(archive(tmp_path / "a.tar", *members))
    assert found == {"1.left.jpg": "cat", "1.right.jpg": None}


@pytest.mark.parametrize(
    ("members", "why"),
    [
        (["i.2.jpg", "i.2.cls=a", "i.cls=b"], "two .cls files could be meant, 'a' and 'b'"),
        (["i.jpg", "i.cls=a", "i.cls=b"], "two .cls files could be meant, 'a' and 'b'"),
        (["i.jpg", "i.cls=a", "i.CLS=b"], "two .cls files could be meant, 'a' and 'b'"),
        (["i.jpg", "i.cls=a", "i.2.jpg"], "the .cls file it could have is of another"),
    ],
)
def test_what_is_not_clear_is_refused_and_images_go_on_without_classes(tmp_path, members, why):
    parts = [member.partition("=") for member in members]
    path = archive(tmp_path / "a.tar", *((name, said.encode()) for name, _, said in parts))
    with pytest.raises(ValueError, match=f"does not say clearly which class a.tar/i.*{why}"):
        Corpus.open(path)
    corpus = Corpus.open(path, labels=False)
    assert (corpus.labels, len(corpus)) == (None, sum(name.endswith("jpg") for name in members))


def test_files_that_agree_are_no_doubt(tmp_path):
    members = [("i.2.jpg", b"x"), ("i.2.cls", b"a"), ("i.cls", b"a")]
    assert classes(archive(tmp_path / "a.tar", *members)) == {"i.2.jpg": "a"}


def test_what_is_not_used_is_counted(tmp_path):
    members = [
        *(("1.jpg", b"x"), ("1.cls", b"cat"), ("1.json", b'{"label": "dog"}'), ("1.txt", b"cat")),
        *(("2.cls", b"cat"), ("3.cls", b"x" * 300), ("4.heic", b"x")),
    ]
    corpus = Corpus.open(archive(tmp_path / "a.tar", *members))
    assert corpus.class_names == ["cat"]
    assert corpus.left_out.others == {".cls": 2, ".json": 1, ".txt": 1}
    assert sum(corpus.left_out.formats.values()) == 1


@pytest.mark.parametrize(
    "said", [b"", b"{", b"[1]", b'{"label": null}', b'{"label": 1.5}', b"[" * 60_000]
)
def test_json_without_a_class_gives_none(tmp_path, said):
    corpus = Corpus.open(archive(tmp_path / "a.tar", ("1.jpg", b"x"), ("1.json", said)))
    assert (corpus.labels, corpus.left_out.others) == (None, {".json": 1})
