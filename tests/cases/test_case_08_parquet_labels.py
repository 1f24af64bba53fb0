"""Labels of Parquet files are read as what they are, or not at all if that is wanted."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy import ToyEncoder

from indexing import Corpus, ImageIndex


def png(seed):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (seed, 9, 99)).save(stream, "PNG")
    return stream.getvalue()


def write(path, labels):
    images = pa.array([{"bytes": png(seed), "path": None} for seed in range(len(labels))])
    pq.write_table(pa.table({"image": images, "label": labels}), path)


def classes(corpus):
    if corpus.labels is None:
        return None
    return [corpus.class_names[label] if label >= 0 else None for label in corpus.labels]


TEXT = ["cat", "dog", "cat", None]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(TEXT), TEXT),
        (pa.array(TEXT).dictionary_encode(), TEXT),
        (pa.array(TEXT, pa.large_string()).dictionary_encode(), TEXT),
        (pa.array(TEXT, pa.string_view()), TEXT),
        (pa.array([7, 3, 7]).dictionary_encode(), ["7", "3", "7"]),
        (pa.array([True, False, None, True]), ["true", "false", None, "true"]),
        (pa.array([0.0, 2.0, None, float("nan")]), ["0", "2", None, None]),
        (pa.array([1.0, 0.0], pa.float32()), ["1", "0"]),
        (pa.array([1.0, 0.0], pa.float16()), ["1", "0"]),
        (pa.array([1, 0], pa.uint64()), ["1", "0"]),
        (pa.array([1, None], pa.int8()), ["1", None]),
        (pa.nulls(2), None),
        (pa.nulls(2, pa.string()), None),
        (pa.array([None, None], pa.float64()), None),
    ],
)
def test_labels_of_any_plain_type_are_classes(tmp_path, labels, expected):
    write(tmp_path / "a.parquet", labels)
    assert classes(Corpus.open(tmp_path)) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            pa.array([[1], [2]]),
            "type list.*; expected integers or text, or go on without",
        ),
        (pa.array([b"a", b"b"]), "labels of type binary"),
        (pa.array([0.5, 1.0]), "labels that are fractions or too large, such as 0.5"),
        (pa.array([1e300, 1.0]), "fractions or too large"),
        (pa.array([float("inf"), 1.0]), "fractions or too large"),
        (pa.array([1 << 63, 1], pa.uint64()), "labels that number no classes"),
        (pa.array([1 << 40, 1]), "has a label of 1,099,511,627,776"),
        (pa.array([-7, 1]), "labels outside its 2 class names"),
    ],
)
def test_labels_that_name_no_classes_are_refused_or_left_alone(tmp_path, labels, message):
    write(tmp_path / "a.parquet", labels)
    with pytest.raises(ValueError, match=message):
        Corpus.open(tmp_path)
    corpus = Corpus.open(tmp_path, labels=False)
    assert (len(corpus), corpus.labels) == (2, None)
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "index")
    assert (len(index), index.class_names) == (2, None)


def test_files_of_one_set_may_hold_the_same_words_in_different_types(tmp_path):
    write(tmp_path / "a.parquet", pa.array(["dog", "cat"]).dictionary_encode())
    write(tmp_path / "b.parquet", pa.array(["cat", "cow"]))
    write(tmp_path / "c.parquet", pa.nulls(1))
    assert classes(Corpus.open(tmp_path)) == ["dog", "cat", "cat", "cow", None]


def test_words_and_numbers_in_one_set_are_refused(tmp_path):
    write(tmp_path / "a.parquet", pa.array(["dog", "cat"]))
    write(tmp_path / "b.parquet", pa.array([1, 2]))
    with pytest.raises(ValueError, match="are of types int64 and string; make them alike"):
        Corpus.open(tmp_path)


def test_command_goes_on_without_labels_and_keeps_to_it(tmp_path, matvit, encoder):
    folder, out = tmp_path / "pq", tmp_path / "index"
    folder.mkdir()
    write(folder / "a.parquet", pa.array([0.5, 1.5]))
    build = ("index", "build", folder, "--out", out, "--encoder", encoder)
    assert matvit(*build)[0] == 1
    assert matvit(*build, "--no-labels")[0] == 0
    write(folder / "b.parquet", pa.array([0.5, 1.5, 2.5]))
    code, out, _ = matvit("index", "add", out, "--encoder", encoder)
    assert (code, "5 images" in out) == (0, True)
