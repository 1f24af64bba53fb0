"""An index that was tuned, and how its queries choose: made up so that some of them go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuned import small_retriever

from retrieval import Retriever, Tuning, tune
from retrieval.tuning.record import Escalation, Operation


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def indexed(tmp_path_factory) -> Retriever:
    return small_retriever(tmp_path_factory.mktemp("indexed"))


@pytest.fixture(scope="session")
def stored(indexed) -> Tuning:
    always = Escalation(
        ladder=("S", "1xS,2xXL", "XL"), thresholds=(0.9, 1e9), uses_labels=True, max_loss=0.1,
        certainty=0.9, calibrated_on=40,
        reported=Operation(level=1.0, thresholds=(0.9, 1e9), macs_fraction=1.2, lost=0.0),
    )  # fmt: skip
    made = replace(tune(indexed, size=80, latency=False), escalation=always)
    made.store()
    return made
