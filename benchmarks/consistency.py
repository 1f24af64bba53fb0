"""How far a submodel says what the full encoder says, by its scores.

Every function compares two tables with one row per image, the full encoder's first, and returns
one value per image.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata


def top1_agreement(
    full: Float[np.ndarray, "images classes"], submodel: Float[np.ndarray, "images classes"]
) -> Bool[np.ndarray, " images"]:
    """Whether both give an image the same most likely class (of equal scores, the first).

    Raises:
        ValueError: If the tables differ in shape.
    """
    _check_shapes(full, submodel)
    agree: Bool[np.ndarray, " images"] = full.argmax(axis=1) == submodel.argmax(axis=1)
    return agree


def kl_divergence(
    full: Float[np.ndarray, "images classes"], submodel: Float[np.ndarray, "images classes"]
) -> Float[np.ndarray, " images"]:
    """Kullback-Leibler divergence of the submodel's class distribution from the full one's.

    Args:
        full: Class scores before softmax.
        submodel: The same of the submodel.

    Returns:
        Nats; 0 where the distributions are equal.

    Raises:
        ValueError: If the tables differ in shape.
    """
    _check_shapes(full, submodel)
    wanted, given = _log_softmax(full), _log_softmax(submodel)
    divergence: Float[np.ndarray, " images"] = (np.exp(wanted) * (wanted - given)).sum(axis=1)
    return divergence


def rank_correlation(
    full: Float[np.ndarray, "queries images"], submodel: Float[np.ndarray, "queries images"]
) -> Float[np.ndarray, " queries"]:
    """Spearman's rank correlation of the scores that both give the same images, per query.

    Equal scores share the mean of their ranks.

    Args:
        full: Scores of the full encoder.
        submodel: Scores of the submodel for the same images.

    Returns:
        Values within -1..1; NaN where one of the two gives all images the same score.

    Raises:
        ValueError: If the tables differ in shape.
    """
    _check_shapes(full, submodel)
    ranks = [rankdata(scores, axis=1) for scores in (full, submodel)]
    first, second = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    lengths = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        correlations: Float[np.ndarray, " queries"] = (first * second).sum(axis=1) / lengths
    return correlations


def _log_softmax(
    scores: Float[np.ndarray, "images classes"],
) -> Float[np.ndarray, "images classes"]:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    logs: Float[np.ndarray, "images classes"] = shifted - np.log(
        np.exp(shifted).sum(axis=1, keepdims=True)
    )
    return logs


def _check_shapes(full: np.ndarray, submodel: np.ndarray) -> None:
    if full.shape != submodel.shape or full.ndim != 2:
        raise ValueError(
            f"expected two tables of one shape with a row per image, got {full.shape} "
            f"and {submodel.shape}"
        )
