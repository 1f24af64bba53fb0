"""Any sequence of updates: the index always answers like a dictionary of vectors and NumPy.

Mutants these must catch: an id that is given twice or changes; a removed image that is found; an
image lost or doubled by compacting, renaming or reopening.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toy import DIM, ToyEncoder, expected_embedding, photo

from indexing import Corpus, ImageIndex, compact, write

NAMES = [f"{folder}/{number}.png" for folder in "abc" for number in range(4)]
QUERIES = np.random.default_rng(1).standard_normal((3, DIM))
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


class IndexMachine(RuleBasedStateMachine):
    """A folder of photos, an index of it, and `known`: what the index should hold, by id."""

    @initialize(names=st.sets(st.sampled_from(NAMES), min_size=1, max_size=6))
    def build(self, names):
        self.work = Path(tempfile.mkdtemp())
        self.size = write.SHARD_SIZE
        write.SHARD_SIZE = compact.SHARD_SIZE = 3
        self.fsync, os.fsync = os.fsync, lambda descriptor: None
        self.seed, self.ever = 0, set()
        for name in sorted(names):
            self.write(name)
        self.index = ImageIndex.build(ToyEncoder(), self.corpus(), self.work / "index")
        self.known = {}
        self.learn_new_ids()

    def teardown(self):
        if hasattr(self, "work"):
            write.SHARD_SIZE = compact.SHARD_SIZE = self.size
            os.fsync = self.fsync
            shutil.rmtree(self.work)

    def corpus(self):
        return Corpus.open(self.work / "photos")

    def write(self, name):
        self.seed += 1
        path = photo(self.work / "photos" / name, self.seed)
        os.utime(path, ns=(self.seed, self.seed))  # however fast the test runs

    def files(self):
        root = self.work / "photos"
        return {path.relative_to(root).as_posix(): path for path in root.rglob("*.png")}

    def learn_new_ids(self):
        """Expect every file to be known; what is not yet gets an id that was never used."""
        by_content = {vector.tobytes(): number for number, (_, vector) in self.known.items()}
        now = {}
        for row, (number, name) in enumerate(
            zip(self.index.ids.tolist(), self.index.paths, strict=True)
        ):
            vector = expected_embedding(self.work / "photos" / name)
            old = by_content.get(vector.tobytes())
            if old is None:
                assert number not in self.ever, "an id was given twice"
            else:
                assert number == old, "an image changed its id"
            self.ever.add(number)
            now[number] = name, vector
            assert row == len(now) - 1, "an id is there twice"
        self.known = now

    @rule(name=st.sampled_from(NAMES))
    def add_or_change_a_file(self, name):
        self.write(name)
        self.add_all()

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=2, max_size=5, unique=True))
    def add_or_change_many_files(self, names):
        for name in names:
            self.write(name)
        self.add_all()

    @rule(choose=st.randoms(use_true_random=False), name=st.sampled_from(NAMES))
    def rename_a_file(self, choose, name):
        files = self.files()
        if name not in files:
            files[choose.choice(sorted(files))].rename(photo(self.work / "photos" / name, 0))
            self.add_all()

    def add_all(self):
        files = self.files()
        self.index = self.index.add(ToyEncoder(), self.corpus(), remove_missing=True)
        assert sorted(self.index.paths) == sorted(files)
        self.learn_new_ids()

    @precondition(lambda self: len(self.known) > 1)
    @rule(choose=st.randoms(use_true_random=False), by_name=st.booleans())
    def remove_an_image(self, choose, by_name):
        number = choose.choice(sorted(self.known))
        name, _ = self.known.pop(number)
        if by_name:
            self.index = self.index.remove(paths=[name])
        else:
            self.index = self.index.remove([number])

    @rule()
    def compact(self):
        self.index = self.index.compact()

    @rule()
    def reopen(self):
        self.index = ImageIndex.open(self.work / "index", ToyEncoder())

    @invariant()
    def holds_what_is_known(self):
        if not hasattr(self, "known"):
            return
        ids = sorted(self.known)
        assert self.index.ids.tolist() == ids
        assert self.index.paths == [self.known[number][0] for number in ids]
        vectors = np.stack([self.known[number][1] for number in ids])
        np.testing.assert_allclose(self.index.embeddings[:], vectors, atol=2e-3)
        for k in (1, len(ids)):
            found, scores = self.index.search(QUERIES, k)
            cosines = QUERIES @ self.index.embeddings[:].T.astype(np.float64)
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(found, np.array(ids)[best])
            np.testing.assert_allclose(scores, np.take_along_axis(cosines, best, 1), atol=1e-6)


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=15, stateful_step_count=12)
