"""Temperatures: a trained model's confidences, divided by one number each so that they mean what they say.

A network is usually surer than it is right. Dividing a logit by a temperature above 1 makes it less sure,
and leaves the order of all answers as it was (Guo et al. 2017, section 4.2). What it is worth is measured in
`vg_utils.evaluation.confidence`.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from vg_utils.evaluation.confidence import expected_calibration_error, presence_outcomes
from vg_utils.models.base import GroundingModel

COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are tried; what wants one beyond is not calibrated by it


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The T for which sigmoid(logit / T) has the least binary cross-entropy with the targets.

    The cross-entropy is convex in 1 / T, so its slope changes its sign once: bisection over log T, in
    float64, needs no learning rate and cannot leave [0.05, 20].

    Args:
        logits: (N,) finite.
        targets: (N,) in [0, 1], hard or soft (an IoU).

    Returns:
        T; 1 where all logits are zero, which no temperature changes.

    Raises:
        ValueError: no values, different numbers of them, a logit that is not finite, a target not in [0, 1].
    """
    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if logits.ndim != 1 or len(logits) == 0 or logits.shape != targets.shape:
        raise ValueError(
            f"expected (N,) logits and (N,) targets, N > 0, got {logits.shape} and {targets.shape}"
        )
    if not np.isfinite(logits).all() or not ((targets >= 0) & (targets <= 1)).all():
        raise ValueError("expected finite logits and targets in [0, 1], got others")
    if not logits.any():
        return 1.0
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        if _too_sure(logits, targets, math.exp(middle)):
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _too_sure(logits: np.ndarray, targets: np.ndarray, temperature: float) -> bool:
    """Whether the cross-entropy falls when the temperature rises."""
    return bool(((_sigmoid(logits / temperature) - targets) * logits).sum() > 0)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(logits / 2)  # the usual formula overflows


@torch.no_grad()
def calibrate(model: GroundingModel, rows: pd.DataFrame, absent: pd.DataFrame) -> dict[str, float]:
    """Fit a model's temperatures to its answers, whatever they were before, and set them in place.

    The score is fitted to the IoU of the predicted box on the phrases that are there, the presence to whether
    a phrase is. Without absent phrases there is nothing to learn about presence: its temperature stays 1.

    Args:
        model: one without `temperatures` is left as it is.
        rows: its answers on `val`, which is neither trained nor reported on (see `evaluation.Predicted`).
        absent: and those to the phrases that fit nothing.

    Returns:
        `score_temperature, presence_temperature`, and the expected calibration error of the score at
        temperature 1, `ece_before`, and now, `ece_after`; where there are absent phrases also
        `presence_ece_before` and `presence_ece_after`. Empty for a model without temperatures.
    """
    if not hasattr(model, "temperatures"):
        return {}
    score, score_errors = _fitted(rows["score_logit"], rows["iou"])
    found = {"score_temperature": score, "presence_temperature": 1.0}
    found |= dict(zip(("ece_before", "ece_after"), score_errors, strict=True))
    if len(absent):
        logits, outcomes = presence_outcomes(rows, absent, "presence_logit")
        found["presence_temperature"], errors = _fitted(logits, outcomes)
        found |= dict(zip(("presence_ece_before", "presence_ece_after"), errors, strict=True))
    fitted = [found["score_temperature"], found["presence_temperature"]]
    model.temperatures.copy_(torch.tensor(fitted))
    return found


def _fitted(logits: ArrayLike, targets: ArrayLike) -> tuple[float, tuple[float, float]]:
    """The temperature, and the calibration error before and after."""
    logits = np.asarray(logits, dtype=np.float64)
    temperature = fit_temperature(logits, targets)
    before, after = _sigmoid(logits), _sigmoid(logits / temperature)
    errors = expected_calibration_error(before, targets), expected_calibration_error(after, targets)
    return temperature, errors
