"""An index in plain words and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexing.corpus import Failure
from indexing.manifest import Manifest


def describe_index(path: Path, manifest: Manifest, failures: Sequence[Failure]) -> dict[str, Any]:
    """Describe an index in plain JSON values.

    `removed` counts stored rows that nobody finds any more, `staged` images of an unfinished
    addition.
    """
    assert manifest.index is not None
    corpus = manifest.corpus
    return {
        "path": str(path),
        "format_version": manifest.format_version,
        "generation": manifest.generation,
        "kind": manifest.index.kind,
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
