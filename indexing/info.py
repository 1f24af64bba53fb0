"""An index in plain words and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexing.manifest import Manifest
from indexing.records import Failure


def describe_index(path: Path, manifest: Manifest, failures: Sequence[Failure]) -> dict[str, Any]:
    """Describe an index in plain JSON values.

    `calibration` is None for the kind Flat, which is exact. `note` says why the kind is not the
    one of `request`, if it is not. `removed` counts stored rows that nobody finds any more,
    `staged` images of an unfinished addition.
    """
    assert manifest.index is not None
    corpus, index = manifest.corpus, manifest.index
    return {
        "path": str(path),
        "format_version": manifest.format_version,
        "generation": manifest.generation,
        "kind": index.kind,
        "factory": index.factory,
        "calibration": None if index.calibration is None else index.calibration.to_dict(),
        "request": vars(index.request).copy(),
        "note": index.note,
        "images": manifest.counts.images,
        "removed": manifest.counts.removed,
        "staged": sum(shard.metadata.rows for shard in manifest.staged),
        "failures": len(failures),
        "failures_by_error": dict(Counter(f.error for f in failures).most_common()),
        "classes": None if corpus.class_names is None else len(corpus.class_names),
        "bytes": sum(file.bytes for file in manifest.files),
        "encoder": vars(manifest.encoder).copy(),
        "preprocess": vars(manifest.preprocess).copy(),
        "corpus": {"root": corpus.root, "kind": corpus.kind, "images": corpus.images},
    }
