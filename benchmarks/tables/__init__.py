"""Every table and every measured sentence of the README and the docs, by name."""

from __future__ import annotations

from collections.abc import Callable

from tables import answers, costs

TABLES: dict[str, Callable[[], str]] = {
    "front": answers.front,
    "headline": answers.headline,
    "retrieval": lambda: answers.sizes("tiny_imagenet_v2"),
    "grocery": lambda: answers.sizes("grocery"),
    "demo": lambda: answers.sizes("demo"),
    "digits": lambda: answers.sizes("digits"),
    "mixes": answers.mixes,
    "agreement": answers.agreement,
    "strategies": answers.strategies,
    "real_vit": lambda: answers.label_free("real_vit"),
    "label_free": lambda: answers.label_free("label_free"),
    "two_axes": lambda: answers.two_axes("two_axes_tiny_imagenet_5000", "Tiny ImageNet"),
    "per_query": lambda: answers.per_query("per_query_tiny_imagenet", timed=True),
    # Measured beside other work: its milliseconds say nothing.
    "per_query_grocery": lambda: answers.per_query("per_query_grocery", timed=False),
    "voting": answers.voting,
    "continued": answers.continued,
    "tuned": answers.tuned,
    "kinds": lambda: costs.kinds("kinds"),
    "kinds_gpu": lambda: costs.kinds("kinds_gpu"),
    "indexing": costs.indexing,
    "decoding": costs.decoding,
    "memory": costs.memory,
    "verify": costs.verify,
    "crash": costs.crash,
    "hostile": costs.hostile,
    "bombs": costs.bombs,
    "serving": costs.serving,
    "encoders": answers.encoders,
    "cycles": costs.cycles,
    "filters": costs.filters,
    "runtimes": costs.runtimes,
    "merging": costs.merging,
    "startup": lambda: costs.startup("startup"),
    "startup_cpu": lambda: costs.startup("startup_cpu"),
    "metrics": costs.metrics,
    "page": costs.page,
    "recipes": costs.recipes,
    "joint_step": costs.joint_step,
    "training_split": costs.training_split,
}
