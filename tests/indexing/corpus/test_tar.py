"""Tar archives against the standard library's own writer, and what is odd in them."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from indexing.corpus.corpus import Corpus


def write_tar(path, members, format=tarfile.PAX_FORMAT):  # noqa: A002 -- what tarfile calls it
    """Members are names with their content, or `TarInfo` objects without one."""
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 12345
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_image_is_read_alone_from_any_archive(tmp_path, format):  # noqa: A002
    deep = "d" * 90 + "/"  # with the file name it is longer than a plain header can hold
    names = ["a/1.jpg", "a/2.PNG", f"{deep}{'e' * 40}.webp"]
    write_tar(tmp_path / "1.tar", [(names[0], b"one" * 300), ("x.txt", b"no")], format)
    write_tar(tmp_path / "0.tar", [(names[1], b"two"), (names[2], b"")], format)
    images = Corpus.open(tmp_path)
    assert images.kind == "tar"
    expected = [f"0.tar/{names[1]}", f"0.tar/{names[2]}", f"1.tar/{names[0]}"]
    assert images.names.to_pylist() == [images.name(i) for i in range(3)] == expected
    assert [images.read(i) for i in (2, 0, 1)] == [b"one" * 300, b"two", b""]
    time = (tmp_path / "1.tar").stat().st_mtime_ns
    assert images.source.stat(2) == (900, time)
    assert images.source.fetch(2) == (b"one" * 300, time)
    assert images.labels is None
    with pytest.raises(IndexError, match="image 3 of 3"):
        images.source.fetch(3)


def test_one_archive_or_a_pattern_of_them(tmp_path):
    for name in ("train-0", "train-1", "val-0"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", b"x")])
    assert len(Corpus.open(tmp_path / "val-0.tar")) == 1
    pattern = Corpus.open(tmp_path / "train-*.tar")
    assert pattern.names.to_pylist() == ["train-0.tar/train-0.jpg", "train-1.tar/train-1.jpg"]
    assert pattern.source.is_there()
    with pytest.raises(FileNotFoundError, match="test-"):
        Corpus.open(tmp_path / "test-*.tar")


def test_class_is_that_of_the_cls_file_beside_the_image(tmp_path):
    members = [
        ("a.cls", b"10\n"),  # before its images
        ("a.left.jpg", b"x"),
        ("a.right.jpg", b"x"),
        ("b.jpg", b"x"),
        ("b.json", b"{}"),
        ("b.cls", b"9"),  # after its image
        ("c.jpg", b"x"),  # none
        ("sub/c.jpg", b"x"),  # another key than c
        ("sub/c.cls", b"10"),
        ("d.cls", b"9"),
        ("d.json", b"{}"),  # no image at all
    ]
    write_tar(tmp_path / "a.tar", members)
    images = Corpus.open(tmp_path / "a.tar")
    assert images.class_names == ["9", "10"]
    assert images.labels.tolist() == [1, 1, 0, -1, 1]


def test_class_may_be_a_word(tmp_path):
    members = [("1.jpg", b"x"), ("1.cls", b"dog"), ("2.jpg", b"x"), ("2.cls", b"7")]
    write_tar(tmp_path / "a.tar", members)
    images = Corpus.open(tmp_path / "a.tar")
    assert images.class_names == ["7", "dog"]
    assert images.labels.tolist() == [1, 0]


def test_names_are_data(tmp_path):
    odd = ["../out.jpg", "/etc/x.jpg", "./here.jpg", "caf\udce9.jpg", ".hidden.jpg", ".h/x.jpg"]
    write_tar(tmp_path / "a.tar", [(name, name.encode(errors="replace")) for name in odd])
    images = Corpus.open(tmp_path / "a.tar")
    expected = ["../out.jpg", "/etc/x.jpg", "here.jpg", "caf\ufffd.jpg"]
    names = [images.name(i) for i in range(4)]
    assert images.names.to_pylist() == names == [f"a.tar/{name}" for name in expected]
    assert images.read(3) == b"caf?.jpg"


def test_link_in_an_archive_is_a_failure_and_not_a_file(tmp_path):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), (link, b"")])
    images = Corpus.open(tmp_path / "a.tar")
    assert images.source.stat(1).bytes == 0
    with pytest.raises(OSError, match="not a file of the archive but a link"):
        images.read(1)


def test_archive_that_changes_after_it_was_opened_gives_errors_and_not_other_images(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"first"), ("b.jpg", b"second")])
    images = Corpus.open(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", [("b.jpg", b"other"), ("a.jpg", b"second")])
    with pytest.raises(OSError, match="has changed since it was listed"):
        images.read(0)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_compressed_archive_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    with pytest.raises(ValueError, match=r"a.t.* is compressed.*; unpack it to a plain .tar first"):
        Corpus.open(tmp_path / name)


def test_what_is_no_whole_archive_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 5000), ("b.jpg", b"x" * 5000)])
    whole = (tmp_path / "a.tar").read_bytes()
    second = 512 + 5120  # where the header of the second image begins
    for damaged in (whole[:3000], b"no archive", whole[:second], whole[:second] + b"?" * 10240):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read .*a.tar: .*; make the archive again"):
            Corpus.open(tmp_path / "a.tar")


def test_archives_without_images_and_mixed_folders_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match="no images in the tar archives of"):
        Corpus.open(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds image files and tar archives; name the tar arch"):
        Corpus.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no .tar files in"):
        Corpus.from_tar(tmp_path / "empty")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(ValueError, match="is not a file; expected a tar archive"):
        Corpus.from_tar(tmp_path)
