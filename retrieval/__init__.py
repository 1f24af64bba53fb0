"""Questions: ask an index with any submodel, and measure what a smaller one costs and finds."""

from __future__ import annotations

from retrieval.evaluate import evaluate
from retrieval.frontier import ParetoFrontier
from retrieval.hits import Hit, Hits
from retrieval.operating_point import Conditions, OperatingPoint
from retrieval.retriever import Retriever

__all__ = [
    "Conditions",
    "Hit",
    "Hits",
    "OperatingPoint",
    "ParetoFrontier",
    "Retriever",
    "evaluate",
]
