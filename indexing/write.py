"""Writing an index: building it, and adding to it, which is the same to something that is there.

What is to be read is planned first. It is then staged: decoded, embedded and committed shard by
shard, in the manifest's `staged`, where nobody searches it and nobody loses it. In the end all that
is staged is merged into what is searched, by one commit. Whoever is stopped, by whatever, loses at
most the shard at hand, and the same call goes on behind the last one.
"""

from __future__ import annotations

import dataclasses
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.changes import Changes, corpus_names, refuse_shared_names
from indexing.checks import check_encoder, check_whole, describe
from indexing.compact import join_small_shards
from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from indexing.corpus.selection import Selection
from indexing.merge import AddReport, merge_addition, merge_build, staged_failures
from indexing.records import NO_LABEL
from indexing.search.gpu import gpu_count
from indexing.search.kinds import resolve
from indexing.search.request import KindRequest
from indexing.stage import Given, Stage
from indexing.store.files import check_hash, check_size
from indexing.store.folder import (
    new_index,
    read_finished,
    remove_index,
    writer_lock,
)
from indexing.store.manifest import CorpusRecord, Counts, Manifest, Plan, Shard, Share
from indexing.store.rows import (
    SHARD_SIZE,
    StoredRows,
    live_rows,
    read_failures,
)
from matvit import Encoder, Precision, progress_of


def build_index(
    encoder: Encoder,
    corpus: Corpus,
    path: Path,
    *,
    request: KindRequest,
    decoders: Decoders = Decoders(),
    precision: Precision = "auto",
    given: Given | None = None,
    progress: bool = False,
) -> None:
    """Embed a corpus and store it as an index, or finish doing so; see `ImageIndex.build`.

    Args:
        encoder: See `ImageIndex.build`, as all that is not named here.
        corpus: The images.
        path: Folder of the index.
        request: What kind of search structure is wanted.
        decoders: Who decodes.
        precision: In which numbers to compute.
        given: Instead of computing: what returns the vectors of the images at some places of the
            corpus' source.
        progress: Show a progress bar on stderr.
    """
    check_whole(encoder)
    if len(corpus) == 0:
        raise ValueError(f"no images to index: the corpus at {corpus.root} is empty")
    resolve(request, len(corpus), encoder.config.embed_dim)  # or hours end in an error
    with new_index(path) as begun:
        manifest = stage_images(
            encoder, corpus, path, begun,
            decoders=decoders, precision=precision, given=given, progress=progress,
        )  # fmt: skip
        device = "auto" if built_on(encoder) == "cuda" else "cpu"
        merge_build(path, manifest, request, device=device, progress=progress)


def stage_images(
    encoder: Encoder,
    corpus: Corpus,
    path: Path,
    begun: Manifest | None,
    *,
    share: Share | None = None,
    decoders: Decoders = Decoders(),
    precision: Precision = "auto",
    given: Given | None = None,
    progress: bool = False,
) -> Manifest:
    """Stage all images of a build, or a share of them, or what is left of that.

    Args:
        encoder: See `build_index`, as all that is not named here.
        corpus: All images, of a share too.
        path: A folder that is reserved by `new_index`.
        begun: What that found.
        share: Which of the images; None for all.
        decoders: Who decodes.
        precision: In which numbers to compute.
        given: Instead of computing.
        progress: Show a progress bar on stderr.
    """
    if begun is None:
        manifest = _begin(encoder, corpus, share)
        remove_index(path)  # what is left of a build that was killed before its first commit
    else:
        if begun.corpus.selection.rules == 1 and not corpus.is_chosen:
            corpus = _as_taken(corpus, begun.corpus.selection)
        manifest = _resume(encoder, corpus, path, begun, share)
    assert manifest.plan is not None
    size, run = manifest.plan.shard_size, manifest.plan.run(len(corpus))
    done = min(len(manifest.staged) * size, len(run))
    stage = Stage(
        encoder=encoder, path=path, corpus=corpus,
        numbers=_class_numbers(manifest.corpus, corpus), changes=None, precision=precision,
        given=given,
    )  # fmt: skip
    with progress_of("indexing", len(run), unit="img", done=done, shown=progress) as bar:
        return stage.store(manifest, np.array(run[done:]), size, decoders, bar.update)


def add_images(
    encoder: Encoder,
    corpus: Corpus,
    path: Path,
    *,
    retry_failed: bool = False,
    remove_missing: bool = False,
    rehash: bool = False,
    decoders: Decoders = Decoders(),
    precision: Precision = "auto",
    progress: bool = False,
) -> AddReport:
    """Bring an index up to date with its corpus; see `ImageIndex.add`."""
    check_whole(encoder)
    check_encoder(path, read_finished(path), encoder)
    corpus = _as_before(corpus, read_finished(path).corpus)
    names = corpus_names(corpus)
    with writer_lock(path):
        before = read_finished(path)
        check_encoder(path, before, encoder)
        now = _updated(path, before.adding or before.corpus, corpus)
        rows = StoredRows(path, before, (*before.shards, *before.staged))
        _refuse_shared_names(path, before, rows, names)
        failures = [(-1, failure) for failure in read_failures(path, before.failure_files)]
        failures += staged_failures(path, before)
        changes = Changes(
            corpus, names, rows, failures,
            retry_failed=retry_failed, forgotten=before.forgotten,
            rehash=rehash, progress=progress,
        )  # fmt: skip
        stage = Stage(
            encoder=encoder, path=path, corpus=corpus,
            numbers=_class_numbers(now, corpus), changes=changes, precision=precision,
        )  # fmt: skip
        manifest, todo = replace(before, adding=now), changes.todo
        with progress_of("adding", len(todo), unit="img", shown=progress) as bar:
            manifest = stage.store(manifest, todo, SHARD_SIZE, decoders, bar.update)
        wanted = names if remove_missing else None
        report = merge_addition(path, before, manifest, wanted, corpus.unlisted)
        return dataclasses.replace(report, generation=join_small_shards(path))


def reopen_corpus(record: CorpusRecord, images: str | None = None) -> Corpus:
    """Open the images of an index once more, to take what was taken when it was built.

    Args:
        record: What the index knows of them.
        images: Where they are said to be now; None for where they were.
    """
    if images is not None and Path(images).resolve() != Path(record.root):
        return Corpus.open(images)
    taken = replace(record.selection, rules=Selection().rules)
    return Corpus.as_listed(record.root, record.kind, taken)


def built_on(encoder: Encoder) -> str:
    """Where FAISS trains and fills: on the GPU if the encoder is on one and FAISS sees one."""
    return "cuda" if encoder.runtime.device == "cuda" and gpu_count() else "cpu"


# --- planning ---------------------------------------------------------------------------------


def _begin(encoder: Encoder, corpus: Corpus, share: Share | None) -> Manifest:
    """Describe a build that has stored nothing yet."""
    by, prepared = describe(encoder)
    class_names = corpus.class_names
    return Manifest(
        generation=0,
        next_id=0,
        next_shard=0,
        counts=Counts(images=0, failures=0, removed=0),
        encoder=by,
        preprocess=prepared,
        corpus=CorpusRecord(
            root=str(corpus.root),
            kind=corpus.kind,
            images=len(corpus),
            class_names=None if class_names is None else tuple(class_names),
            selection=corpus.selection,
            left_out=corpus.left_out,
        ),
        shards=(),
        staged=(),
        plan=Plan(list_sha256=corpus.list_sha256, shard_size=SHARD_SIZE, share=share),
        adding=None,
        tombstones=None,
        failures=None,
        index=None,
    )


def _resume(
    encoder: Encoder, corpus: Corpus, path: Path, begun: Manifest, share: Share | None
) -> Manifest:
    """Check that an unfinished build is the same job, and drop shards that are damaged.

    Raises:
        IndexMismatchError: If it was begun by another encoder or preprocessing.
        ValueError: If it was begun with another list of images, or as another share of them.
    """
    check_encoder(path, begun, encoder)
    assert begun.plan is not None
    old = begun.corpus
    same = (old.root, old.images, begun.plan.list_sha256)
    if same != (str(corpus.root), len(corpus), corpus.list_sha256):
        raise ValueError(
            f"{path} was begun with another list of images: {old.images:,} in {old.root}, now "
            f"{len(corpus):,} in {corpus.root}; put files that were added, renamed or removed "
            "back as they were, or remove the index and start again"
        )
    share = _same_share(path, begun.plan.share, share)
    return intact(path, replace(begun, plan=replace(begun.plan, share=share)))


def _same_share(path: Path, begun: Share | None, share: Share | None) -> Share | None:
    """Return a share with all that work on it, once it is certain to be the one that was begun.

    Raises:
        ValueError: If it is another one, or embeds otherwise.
    """
    if begun is None and share is None:
        return None
    if begun is None or share is None:
        held = "the build of a whole index" if begun is None else f"shard {begun} of a build"
        raise ValueError(f"{path} holds {held}; choose another folder")
    if replace(share, devices=begun.devices) != begun:
        raise ValueError(
            f"{path} was begun as shard {begun} in batches of {begun.batch_size} and "
            f"{begun.numbers}, now {share} in batches of {share.batch_size} and {share.numbers}; "
            "go on with the same options, or remove it and start again"
        )
    return replace(share, devices=tuple(dict.fromkeys((*begun.devices, *share.devices))))


def intact(path: Path, begun: Manifest) -> Manifest:
    """Drop shards that are damaged, and what was staged behind them."""
    whole = tuple(takewhile(lambda shard: _is_intact(path, shard), begun.staged))
    if whole == begun.staged:
        return begun
    next_id = sum(shard.metadata.rows for shard in whole)
    return replace(begun, staged=whole, next_id=next_id, next_shard=len(whole))


def _is_intact(path: Path, shard: Shard) -> bool:
    try:
        for file in shard.files:
            check_size(path, file)
            check_hash(path, file)
    except ValueError:
        return False
    return True


def _updated(path: Path, old: CorpusRecord, corpus: Corpus) -> CorpusRecord:
    """Describe the corpus as it is now; classes keep their numbers, new ones come last.

    Raises:
        ValueError: If it is another corpus.
    """
    if (old.root, old.kind) != (str(corpus.root), corpus.kind):
        moved = not Path(old.root).exists() or Path(old.root).resolve() == corpus.root
        raise ValueError(
            f"{path} holds images of the {old.kind} {old.root}, so the {corpus.kind} "
            f"{corpus.root} cannot be added to it; put the images there or build another index"
            + (", or if they have moved: matvit index relocate INDEX PLACE" if moved else "")
        )
    names = old.class_names
    if corpus.class_names is not None:
        known = names or ()
        names = (*known, *(name for name in corpus.class_names if name not in set(known)))
    return replace(
        old,
        images=len(corpus),
        class_names=names,
        selection=corpus.selection,
        left_out=corpus.left_out,
    )


def _as_before(corpus: Corpus, old: CorpusRecord) -> Corpus:
    """Take what was taken when the index was built, unless the caller chose something else."""
    if corpus.is_chosen or not corpus.is_whole:
        return corpus
    return _as_taken(
        corpus,
        replace(
            old.selection,
            labels=old.selection.labels and corpus.labelled,
            rows=old.selection.rows or corpus.selection.rows,
            rules=corpus.selection.rules,
        ),
    )


def _as_taken(corpus: Corpus, selection: Selection) -> Corpus:
    if selection == corpus.selection:
        return corpus
    return Corpus.as_listed(corpus.root, corpus.kind, selection)


def _refuse_shared_names(path: Path, manifest: Manifest, rows: StoredRows, names: pa.Array) -> None:
    """Refuse an index in which a name stands for several images, staged ones aside.

    Names that the corpus no longer has do not matter: its images have others now.
    """
    searched = sum(shard.metadata.rows for shard in manifest.shards)
    live = live_rows(rows.ids[:searched], rows.removed)
    paths = rows.metadata.column("path").take(live)
    paths = paths.filter(pc.is_in(paths, value_set=names.cast(paths.type)))
    refuse_shared_names(paths, f"images in {path}")


def _class_numbers(record: CorpusRecord, corpus: Corpus) -> Int64[ndarray, " classes"]:
    """Number in the index of each class of the corpus, and of no class as the last one."""
    number = {name: label for label, name in enumerate(record.class_names or ())}
    named = (number[name] for name in corpus.class_names or ())
    return np.array([*named, NO_LABEL], dtype=np.int64)
