"""The manifest: exactly what is written can be read, and nothing else.

Mutants these must catch: unknown keys ignored; `true` read as 1; the version checked after the
keys; a file name that leads out of the index folder.
"""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from indexing.search.request import Effort, KindRequest
from indexing.store.files import StoredFile
from indexing.store.manifest import (
    MAX_BYTES,
    CorpusRecord,
    Counts,
    EncoderRecord,
    Manifest,
    PreprocessRecord,
    SearchRecord,
    Shard,
    sealed,
)


def stored(name, rows):
    return StoredFile(name=name, rows=rows, bytes=100, sha256="0123456789abcdef" * 4)


def shard(number, rows, failures=0):
    return Shard(
        number=number,
        embeddings=stored(f"img_emb/img_emb_{number:06d}.npy", rows),
        metadata=stored(f"metadata/metadata_{number:06d}.parquet", rows),
        failures=stored(f"failures/failures_{number:06d}.parquet", failures),
    )


@pytest.fixture
def manifest():
    return Manifest(
        generation=1,
        next_id=7,
        next_shard=3,
        counts=Counts(images=7, failures=2, removed=0),
        encoder=EncoderRecord(name="tiny", fingerprint="ab" * 8, dim=16, macs=44_608),
        preprocess=PreprocessRecord(spec={"image_size": 16, "mean": [0.5]}, fingerprint="cd" * 8),
        corpus=CorpusRecord(root="/photos", kind="folder", images=9, class_names=("é", "b")),
        shards=(shard(0, 4), shard(1, 3, failures=2)),
        staged=(),
        plan=None,
        adding=None,
        tombstones=None,
        failures=None,
        index=SearchRecord(
            kind="Flat",
            factory="Flat",
            effort=None,
            request=KindRequest(),
            note=None,
            file=stored("index/knn_g1.faiss", 7),
        ),
    )


@pytest.fixture
def values(manifest):
    values = json.loads(manifest.to_json())
    del values["sha256"]
    return values


def read(values):
    return Manifest.from_json(sealed(values))


def test_manifest_is_read_as_it_was_written(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_classes_may_be_missing(manifest):
    unlabelled = replace(manifest, corpus=replace(manifest.corpus, class_names=None))
    assert Manifest.from_json(unlabelled.to_json()) == unlabelled


def test_corpus_whose_name_is_no_utf_8_is_read_as_it_was_written(manifest):
    elsewhere = replace(manifest, corpus=replace(manifest.corpus, root="/photos/\udcff"))
    assert Manifest.from_json(elsewhere.to_json()) == elsewhere


def test_kind_and_calibration_are_read_as_they_were_written(manifest):
    effort = Effort(nprobe=8, ef_search=0, rescore=2, target=0.95, recall=0.963, queries=512)
    asked = KindRequest(factory="IVF16,SQ8", max_memory_bytes=4_000_000_000, device="cuda")
    search = replace(
        manifest.index, kind="factory", factory="IVF16,SQ8", effort=effort,
        request=asked, note="why",
    )  # fmt: skip
    manifest = replace(manifest, index=search)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_keys_are_those_of_the_published_format(values):
    top = "format_version generation next_id next_shard counts encoder preprocess corpus"
    assert list(values) == [
        *top.split(),
        *["shards", "staged", "plan", "adding", "tombstones", "failures", "index"],
    ]
    assert list(values["encoder"]) == ["name", "fingerprint", "dim", "macs"]
    assert list(values["preprocess"]) == ["spec", "fingerprint", "colours"]
    search = ["kind", "factory", "calibration", "request", "note", "file"]
    assert list(values["index"]) == search
    assert list(values["index"]["request"]) == ["kind", "factory", "max_memory_bytes", "device"]
    assert list(values["shards"][0]["embeddings"]) == ["name", "rows", "bytes", "sha256"]


def test_files_are_all_that_the_index_consists_of(manifest):
    assert [file.name for file in manifest.files] == [
        "img_emb/img_emb_000000.npy",
        "metadata/metadata_000000.parquet",
        "failures/failures_000000.parquet",
        "img_emb/img_emb_000001.npy",
        "metadata/metadata_000001.parquet",
        "failures/failures_000001.parquet",
        "index/knn_g1.faiss",
    ]


def test_unknown_key_is_refused(values):
    values["colour"] = "red"
    with pytest.raises(
        ValueError, match="it is no manifest: Object contains unknown field `colour`"
    ):
        read(values)


def test_unknown_key_deep_inside_is_refused(values):
    values["shards"][1]["metadata"]["colour"] = "red"
    with pytest.raises(ValueError, match=r"unknown field `colour` - at `\$.shards\[1\].metadata`"):
        read(values)


def test_missing_key_is_refused(values):
    del values["encoder"]["fingerprint"]
    with pytest.raises(ValueError, match=r"missing required field `fingerprint` - at `\$.encoder`"):
        read(values)


@pytest.mark.parametrize("version", [5, "1", "4", None, True, 4.0])
def test_other_version_is_refused_before_its_keys_are_looked_at(values, version):
    values |= {"format_version": version, "key_of_the_future": 1}
    with pytest.raises(ValueError, match="format version .*, this program reads version 4; use a"):
        read(values)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_earlier_version_is_to_be_built_again(values, version):
    del values["counts"]["removed"], values["index"]["request"]["device"]
    values["format_version"] = version
    message = (
        f"it has format version {version}, this program reads version 4; build the index again"
    )
    with pytest.raises(ValueError, match=message):
        read(values)


def test_changed_manifest_is_refused_whatever_was_changed(manifest):
    text = manifest.to_json().decode()
    for old, new in (("tiny", "tinx"), ("44608", "44609"), ("/photos", "/photoz"), ("null", "[]")):
        with pytest.raises(ValueError, match="it is damaged: its content is not what was written"):
            Manifest.from_json(text.replace(old, new, 1).encode())


def test_truncated_manifest_is_refused_at_any_length(manifest):
    text = manifest.to_json().rstrip()
    for length in range(0, len(text), 97):
        with pytest.raises(ValueError, match="it is not complete JSON"):
            Manifest.from_json(text[:length])


def test_nesting_bomb_is_refused():
    with pytest.raises(ValueError, match="it is not complete JSON"):
        Manifest.from_json(b"[" * 1_000_000)


def test_oversized_manifest_is_refused_unparsed():
    with pytest.raises(ValueError, match="more than the limit"):
        Manifest.from_json(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize("value", [True, 16.0, "16", None, [16]])
def test_value_of_another_type_is_refused(values, value):
    values["encoder"]["dim"] = value
    with pytest.raises(ValueError, match=r"Expected `int`, got `\w+` - at `\$.encoder.dim`"):
        read(values)


@pytest.mark.parametrize("value", [-1, 1 << 60])
def test_number_out_of_bounds_is_refused(values, value):
    values["shards"][0]["metadata"]["rows"] = value
    with pytest.raises(
        ValueError, match=r"Expected `int` [<>]= \d+ - at `\$.shards\[0\].metadata.rows`"
    ):
        read(values)


@pytest.mark.parametrize(
    "name", ["../secret.npy", "/etc/passwd", "img_emb/../../x", "img_emb/img_emb_000000.npy\n", ""]
)
def test_file_name_that_no_index_has_is_refused(values, name):
    values["shards"][0]["embeddings"]["name"] = name
    with pytest.raises(
        ValueError, match=r"Expected `str` matching regex .* - at `\$.shards\[0\].embeddings.name`"
    ):
        read(values)


def test_hash_that_is_none_is_refused(values):
    values["index"]["file"]["sha256"] = "0" * 63
    with pytest.raises(ValueError, match=r"matching regex .* - at `\$.index.file.sha256`"):
        read(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["counts"].update(images=0), "holds no image"),
        (lambda v: v["counts"].update(images=8), "do not add up to 8 images"),
        (lambda v: v["counts"].update(failures=1), "do not add up to 1 failures"),
        (lambda v: v["counts"].update(removed=1), "do not add up to 7 images and 1 removed ones"),
        (lambda v: v["index"]["file"].update(rows=6), "has 6 rows of 7"),
        (lambda v: v["index"]["file"].update(rows=8), "has 8 rows of 7"),
        (lambda v: v.update(index=None), "either a search file or a plan"),
        (lambda v: v.update(next_shard=1), "not numbered apart below 1"),
        (lambda v: v.update(staged=v["shards"][:1]), "not numbered apart below 3"),
        (lambda v: v["shards"][0]["metadata"].update(rows=5), "4 embeddings but 5 rows"),
        (lambda v: v.update(next_id=6), "next_id is 6, below the 7 ids"),
        (
            lambda v: v["corpus"].update(kind="tape"),
            r"Invalid enum value 'tape' - at `\$.corpus.kind`",
        ),
    ],
)
def test_counts_that_disagree_are_refused(values, change, message):
    change(values)
    with pytest.raises(ValueError, match=message):
        read(values)
