"""What is served against what `/openapi.json` says of it, asked with whatever that allows."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import HealthCheck, given, settings

from app.serving.routes import make_app
from app.serving.server import Settings
from indexing import Corpus, ImageIndex
from retrieval import Retriever

schemathesis = pytest.importorskip("schemathesis", reason="it comes with the extra `dev`")
checks = importlib.import_module("schemathesis.specs.openapi.checks")


@pytest.fixture(scope="module")
def described(tiny_model, shared_photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("described") / "index"
    index = ImageIndex.build(tiny_model, Corpus.open(shared_photos), path)
    app = make_app(Settings(index=str(path)), None, Retriever(tiny_model, index))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/search"), ("POST", "/encode"), ("GET", "/images/{id}"), ("GET", "/health"),
        ("GET", "/metrics"),
    ],
)  # fmt: skip
def test_no_question_is_answered_otherwise_than_described(described, method, path):
    @given(case=described[path][method].as_strategy())
    @settings(
        max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def ask(case):
        # Which words name a size, and how many numbers a vector has, no schema says.
        case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

    ask()
