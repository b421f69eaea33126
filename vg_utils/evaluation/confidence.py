"""What a model's confidence is worth: is it as high as it should be, and does it put right before wrong?

Calibration compares a confidence with what came of it: `reliability`, `expected_calibration_error`. Ranking
asks only for the order: `risk_coverage`, `auroc`. Both start from plain columns of numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

BINS = 15  # as Guo et al. 2017
PRESENCE_THRESHOLD = 0.5  # of a presence: a phrase below it is said to fit nothing
FOUND_IOU = 0.5  # an answer that overlaps the truth less than this is wrong


def confidence_of(rows: pd.DataFrame, absent: pd.DataFrame | None = None) -> dict[str, float]:
    """What an evaluation says about the confidence of a model, ready for JSON.

    Args:
        rows: of the expressions (see `evaluation.metrics`), with `presence` where the model gives it.
        absent: rows of the phrases that fit nothing in their image (see `rows.Predicted`), if any.

    Returns:
        Dict of `ece`, of the score against the IoU it predicts, and `aurc`, where an answer with IoU 0.5 or
        more is right; both are left out where all scores are equal, and say nothing. With a presence and
        absent phrases also `n_absent`, `presence_auroc` and `presence_ece`.
    """
    found = {}
    if rows["score"].nunique() > 1:
        found["ece"] = expected_calibration_error(rows["score"], rows["iou"])
        found["aurc"] = risk_coverage(rows["score"], rows["iou"] >= FOUND_IOU)[1]
    if absent is not None and len(absent) and "presence" in rows:
        found["n_absent"] = len(absent)
        found["presence_auroc"] = auroc(rows["presence"], absent["presence"])
        found["presence_ece"] = expected_calibration_error(*presence_outcomes(rows, absent))
    return found


def presence_by_family(rows: pd.DataFrame, absent: pd.DataFrame) -> pd.DataFrame:
    """How well phrases that fit nothing are told from those that fit, by what kind of phrase they are.

    Args:
        rows: of the expressions, with `presence` and `family`.
        absent: rows of the phrases that fit nothing in their image, with the same.

    Returns:
        A line for each family of `absent`, the hardest first: how many they are (`n_absent`), their mean
        presence, and the AUROC of the expressions of that family, of all where it has none, against them.
    """
    lines = {}
    for family, misses in absent.groupby("family", observed=True)["presence"]:
        fits = rows.loc[rows["family"] == family, "presence"]
        fits = fits if len(fits) else rows["presence"]
        lines[family] = {"n_absent": len(misses), "presence": misses.mean(), "auroc": auroc(fits, misses)}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("family").sort_values("auroc")


def target_accuracy(
    rows: pd.DataFrame, absent: pd.DataFrame | None, threshold: float = PRESENCE_THRESHOLD
) -> dict[str, float]:
    """gRefCOCO's N-acc and T-acc: how often it is known whether a phrase has a target (Liu et al. 2023).

    Args:
        rows: of the expressions, which have one target each; with `presence` where the model gives it.
        absent: rows of the phrases that have none, if any.
        threshold: in [0, 1]; a phrase whose presence is below it is said to have no target.

    Returns:
        Dict of `n_acc`, the share of the phrases without a target of which that is said, `t_acc`, the share
        of the expressions of which it is not, and `presence_threshold`; empty without a presence or such
        phrases.
    """
    if absent is None or not len(absent) or "presence" not in rows:
        return {}
    return {
        "n_acc": float((absent["presence"] < threshold).mean()),
        "t_acc": float((rows["presence"] >= threshold).mean()),
        "presence_threshold": threshold,
    }


def presence_outcomes(
    rows: pd.DataFrame, absent: pd.DataFrame, column: str = "presence"
) -> tuple[np.ndarray, np.ndarray]:
    """The column of all N + M phrases, and whether each is there: N ones of `rows`, M zeros of `absent`."""
    return np.concatenate([rows[column], absent[column]]), np.repeat([1.0, 0.0], [len(rows), len(absent)])


def reliability(confidence: ArrayLike, outcome: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """Mean confidence beside mean outcome, in bins of equal width.

    Args:
        confidence: (N,) in [0, 1].
        outcome: (N,) in [0, 1], what the confidence predicts: right or wrong, or a share such as the IoU.
        bins: how many; a bin holds its lower edge, the last one also its upper one.

    Returns:
        A line for each bin: `low, high, n, confidence, outcome`; the two means are NaN where n is 0.

    Raises:
        ValueError: no values, different numbers of them, or one that is not in [0, 1]; or no bins.
    """
    confidence, outcome = _shares(confidence, "confidence"), _shares(outcome, "outcome")
    if bins < 1 or len(confidence) != len(outcome):
        raise ValueError(
            f"expected an outcome for each confidence and at least one bin, got {len(confidence)} "
            f"confidences, {len(outcome)} outcomes and {bins} bins"
        )
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    n = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=values, minlength=bins) for values in (confidence, outcome)]
    means = [np.divide(s, n, out=np.full(bins, np.nan), where=n > 0) for s in sums]
    edges = np.linspace(0, 1, bins + 1)
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "n": n, "confidence": means[0], "outcome": means[1]}
    )


def expected_calibration_error(confidence: ArrayLike, outcome: ArrayLike, bins: int = BINS) -> float:
    """Mean distance of confidence and outcome over the bins of `reliability`, weighted by their counts.

    Naeini et al. 2015; Guo et al. 2017, equation 3. Zero is perfect. With a soft outcome, the IoU, it says by
    how much a predicted IoU is off.
    """
    table = reliability(confidence, outcome, bins)
    gap = (table["confidence"] - table["outcome"]).abs().fillna(0)  # an empty bin weighs nothing
    return float((gap * table["n"]).sum() / table["n"].sum())


def risk_coverage(score: ArrayLike, correct: ArrayLike) -> tuple[pd.DataFrame, float]:
    """How wrong the surest answers are, for each share of them that is given (El-Yaniv & Wiener 2010).

    Answers of equal score come in no order: each counts as wrong by the mean of them all, so that the result
    does not depend on the order of the rows.

    Args:
        score: (N,) any finite numbers, the surest the highest.
        correct: (N,) booleans, or shares in [0, 1].

    Returns:
        A table of N lines, `coverage` in (0, 1] and `risk` in [0, 1], the mean error of the answers so far;
        and the area under the curve (AURC; Geifman & El-Yaniv 2017): the mean risk. Lower is better; a score
        that knows nothing has the error rate of all answers.

    Raises:
        ValueError: no values, different numbers of them, a score that is not finite.
    """
    score, correct = np.asarray(score, dtype=float), _shares(correct, "correct")
    if score.shape != correct.shape or not np.isfinite(score).all():
        raise ValueError(f"expected (N,) finite scores, N = {len(correct)} as of correct, got {score.shape}")
    _, tie, counts = np.unique(-score, return_inverse=True, return_counts=True)  # groups, the surest first
    errors = np.repeat(np.bincount(tie, weights=1 - correct) / counts, counts)
    given = np.arange(1, len(errors) + 1)
    risk = errors.cumsum() / given
    return pd.DataFrame({"coverage": given / len(errors), "risk": risk}), float(risk.mean())


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Probability that a random positive has the higher value than a random negative; a tie counts half.

    That is the area under the ROC curve (Hanley & McNeil 1982).

    Args:
        positive: (P,) values of what should have the higher ones.
        negative: (Q,) values of the others.

    Raises:
        ValueError: none of either, or a NaN.
    """
    positive, negative = np.asarray(positive, dtype=float), np.sort(np.asarray(negative, dtype=float))
    if not len(positive) or not len(negative) or np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError(
            f"expected positive and negative values, got {len(positive)} and {len(negative)} (or a NaN)"
        )
    below, not_above = (negative.searchsorted(positive, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negative)))


def auroc_ci(
    positive: ArrayLike,
    positive_groups: ArrayLike,
    negative: ArrayLike,
    negative_groups: ArrayLike,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `auroc`, drawing whole images with all that was asked of them.

    Args:
        positive, negative: (P,) and (Q,), as `auroc` takes them.
        positive_groups, negative_groups: (P,) and (Q,) the image of each value.
        n, seed, level: see `metrics.bootstrap_ci`.

    Returns:
        (low, high). A draw without a positive or without a negative is left out; both NaN if that is all of
        them, or with a single image.
    """
    positive, negative = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    groups = np.concatenate([positive_groups, negative_groups])
    images, index = np.unique(groups, return_inverse=True)
    if len(images) == 1:
        return float("nan"), float("nan")
    # (images, images): how often a positive of one is above a negative of the other, and of how many pairs
    above, pairs = np.zeros((2, len(images), len(images)))
    columns = index[len(positive) :]
    for value, row in zip(positive, index[: len(positive)], strict=True):
        above[row] += np.bincount(columns, (value > negative) + 0.5 * (value == negative), len(images))
        pairs[row] += np.bincount(columns, minlength=len(images))
    drawn = np.random.default_rng(seed).multinomial(len(images), [1 / len(images)] * len(images), size=n)
    wins, of = (((drawn @ table) * drawn).sum(axis=1) for table in (above, pairs))
    if not of.any():
        return float("nan"), float("nan")
    low, high = np.quantile(wins[of > 0] / of[of > 0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _shares(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    bad = ~((values >= 0) & (values <= 1))  # True for NaN too
    if values.ndim != 1 or len(values) == 0 or bad.any():
        got = f"{values[bad][0]} among them" if values.ndim == 1 and bad.any() else f"shape {values.shape}"
        raise ValueError(f"{name}: expected (N,) numbers in [0, 1], N > 0, got {got}")
    return values
