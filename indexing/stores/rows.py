"""An index as rows for others: a vector and all that is known of each image, and who may ask.

The encoder, the preprocessing and the place of the images travel with the rows, as JSON texts
under names that begin with `matvit.`: in the metadata of an Arrow schema or of a collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.records import NO_LABEL
from indexing.store.manifest import CorpusRecord, EncoderRecord, PreprocessRecord
from indexing.store.rows import METADATA
from matvit import progress_of, write_atomically

if TYPE_CHECKING:
    from indexing.images import IndexedImages

FORMAT = 1
VECTOR = "vector"
_PREFIX = "matvit."
_TOGETHER = 8_192


@dataclass(frozen=True, kw_only=True)
class Header:
    """What rows are of; see `indexing.checks.Described`.

    Attributes:
        encoder: What embedded the images.
        preprocess: How they became its input.
        corpus: Where they came from, and what its classes are.
    """

    encoder: EncoderRecord
    preprocess: PreprocessRecord
    corpus: CorpusRecord

    @classmethod
    def of(cls, index: IndexedImages) -> Header:
        """Describe the rows of an index."""
        said = index.described
        return cls(encoder=said.encoder, preprocess=said.preprocess, corpus=said.corpus)

    def to_texts(self) -> dict[str, str]:
        """Return names and texts for the metadata of a store."""
        parts = {
            "format": FORMAT,
            "encoder": self.encoder,
            "preprocess": self.preprocess,
            "corpus": self.corpus,
        }
        return {_PREFIX + name: msgspec.json.encode(each).decode() for name, each in parts.items()}

    @classmethod
    def from_texts(cls, where: str, texts: Mapping[str, str]) -> Header:
        """Read the metadata of a store.

        Raises:
            ValueError: If it is not that of an index, or of another version.
        """
        again = "write it with `matvit index export`"
        try:
            found = msgspec.json.decode(texts[_PREFIX + "format"], type=int)
            if found != FORMAT:
                raise ValueError(
                    f"{where} has rows of format {found}, this program reads {FORMAT}; {again}"
                )
            return cls(
                encoder=msgspec.json.decode(texts[_PREFIX + "encoder"], type=EncoderRecord),
                preprocess=msgspec.json.decode(
                    texts[_PREFIX + "preprocess"], type=PreprocessRecord
                ),
                corpus=msgspec.json.decode(texts[_PREFIX + "corpus"], type=CorpusRecord),
            )
        except KeyError as error:
            raise ValueError(
                f"{where} does not say which encoder may ask it: its metadata has no "
                f"{error.args[0]}; {again}"
            ) from error
        except msgspec.DecodeError as error:
            raise ValueError(f"the metadata of {where} cannot be read: {error}; {again}") from error


def schema_of(header: Header) -> pa.Schema:
    """Return the columns of rows: those of `METADATA`, the class by name, and the vector."""
    fields = [
        pa.field("label", pa.string()) if field.name == "label" else field for field in METADATA
    ]
    vector = pa.field(VECTOR, pa.list_(pa.float32(), header.encoder.dim))
    return pa.schema([*fields, vector], metadata=header.to_texts())


def batches_of(index: IndexedImages, *, progress: bool = False) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an index, as `schema_of` names them, some thousand at a time.

    Vectors are those that are compared: float32 of length one.
    """
    schema = schema_of(Header.of(index))
    with progress_of("writing", len(index), unit="img", shown=progress) as bar:
        for start in range(0, len(index), _TOGETHER):
            yield rows_of(index, slice(start, start + _TOGETHER), schema)
            bar.update(min(_TOGETHER, len(index) - start))


def rows_of(index: IndexedImages, rows: slice, schema: pa.Schema) -> pa.RecordBatch:
    """Return some rows of an index, in the columns of a schema that names some of theirs."""
    vectors, names = index.embeddings[rows], index.class_names
    table = index.metadata[rows].combine_chunks()
    numbers = index.labels[rows].tolist()
    columns = {
        **{name: table.column(name) for name in table.column_names},
        "label": [names[number] if names and number >= 0 else None for number in numbers],
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    chosen = {name: columns[name] for name in schema.names if name in columns}
    known = pa.schema([schema.field(name) for name in chosen], metadata=schema.metadata)
    return pa.table(chosen, schema=known).combine_chunks().to_batches()[0]


def images_of(where: str, rows: pa.Table, header: Header) -> pa.Table:
    """Turn rows as they are stored into the metadata of an index: by id, classes by number.

    Raises:
        ValueError: If there are none, columns are missing or of other types, or an id is there
            twice.
    """
    try:
        if not rows.num_rows:
            raise ValueError("it has no rows")
        names = pa.array(header.corpus.class_names or (), pa.string())
        label = rows.column("label").cast(pa.string())
        numbers = pc.fill_null(pc.index_in(label, value_set=names), NO_LABEL).cast(pa.int64())
        table = rows.set_column(rows.column_names.index("label"), "label", numbers)
        table = table.select(METADATA.names).cast(METADATA).sort_by("id").combine_chunks()
        if (np.diff(table.column("id").to_numpy()) <= 0).any() or table.column("id").null_count:
            raise ValueError("an id is there twice, or missing")
    except (KeyError, ValueError, pa.ArrowException) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"{where} does not hold the rows of an index: {text}; write it with "
            "`matvit index export`"
        ) from error
    return table


def write_parquet(index: IndexedImages, file: str | Path, *, progress: bool = False) -> None:
    """Write the rows of an index as one Parquet file, replaced if it is there.

    Raises:
        OSError: If it cannot be written.
    """

    def write(stream: BinaryIO) -> None:
        with pq.ParquetWriter(stream, schema_of(Header.of(index))) as writer:
            for batch in batches_of(index, progress=progress):
                writer.write_batch(batch)

    write_atomically(Path(file), write)
