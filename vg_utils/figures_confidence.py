"""Figures of a model's confidence: reliability, risk and coverage, presence, and where it looks.

They follow the rules of `vg_utils.visualize`, and look like its figures: each returns a figure, and saves it
where a `path` is given; the title is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image

from vg_utils.confidence import FOUND_IOU, auroc, expected_calibration_error, reliability, risk_coverage
from vg_utils.predictor import Prediction
from vg_utils.visualize import (
    BAR_COLORS,
    INK,
    STYLE,
    TRAIN_COLOR,
    VAL_COLOR,
    PathLike,
    StyledFigure,
    finish,
    prediction_grid,
)

ABSENT_COLOR = "#d1603d"
# Perceptually uniform, without the yellow end, from which a yellow box would not stand out. The lower a
# value, the more of the picture shows through.
HEAT = ListedColormap(
    mpl.colormaps["magma"](np.linspace(0.2, 0.8, 256)) * [1, 1, 1, 0] + np.linspace(0, [0, 0, 0, 0.85], 256)
)


@mpl.rc_context(STYLE)
def reliability_diagram(
    confidence: ArrayLike,
    outcome: ArrayLike,
    path: PathLike = None,
    title: str = "",
    names: tuple[str, str] = ("score", "mean IoU"),
    bins: int = 15,
) -> Figure:
    """What came of each confidence, beside what should have come of it, over the counts (Guo et al. 2017).

    Args:
        confidence: (N,) in [0, 1].
        outcome: (N,) in [0, 1].
        names: what the confidence is, and what the mean outcome is.
        bins: of equal width; empty ones show nothing.
    """
    table = reliability(confidence, outcome, bins)
    table = table[table["n"] > 0]
    error = expected_calibration_error(confidence, outcome, bins)
    figure = StyledFigure(figsize=(6, 5.8), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    edges, width = table["low"].to_numpy(), 1 / bins
    above.bar(edges, table["outcome"], width, align="edge", color=BAR_COLORS[1], edgecolor="white")
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfectly calibrated")
    label = f"observed, at the bin's mean {names[0]}"
    above.plot(table["confidence"], table["outcome"], "o", color=VAL_COLOR, markersize=5, label=label)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"{names[1]} in the bin")
    above.set_title(f"expected calibration error {error:.3f} ({bins} bins)", loc="left")
    below.bar(edges, table["n"], width, align="edge", color=TRAIN_COLOR, edgecolor="white")
    below.set(xlabel=f"{names[0]} in [0, 1]", ylabel=f"count, of {table['n'].sum():,}")
    for ax in (above, below):
        ax.grid(axis="y", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2)
    return finish(figure, title, path)


@mpl.rc_context(STYLE)
def risk_coverage_curve(
    rows: pd.DataFrame, path: PathLike = None, title: str = "", threshold: float = FOUND_IOU
) -> Figure:
    """How often the surest answers are wrong, for each share of them that is given (see `risk_coverage`).

    Beside it stand the best order there could be, all right answers first, and one that knows nothing.

    Args:
        rows: with `score` and `iou`.
        threshold: IoU from which an answer is right.
    """
    correct = rows["iou"] >= threshold
    curves = [("by the model's score", rows["score"], VAL_COLOR, "-")]
    curves.append(("best order possible", correct, INK, ":"))
    curves.append(("random order", np.zeros(len(rows)), TRAIN_COLOR, "--"))
    figure = StyledFigure(figsize=(6, 4.2), layout="constrained")
    ax = figure.subplots()
    for label, score, color, line in curves:
        table, area = risk_coverage(score, correct)
        style = {"color": color, "linestyle": line, "linewidth": 1.8}
        ax.plot(table["coverage"], table["risk"], label=f"{label}: area {area:.3f}", **style)
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage: share of phrases answered, the surest first")
    ax.set_ylabel(f"risk: share of answers with IoU below {threshold:g}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=None))
    ax.grid(linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2)
    return finish(figure, title, path)


@mpl.rc_context(STYLE)
def presence_histogram(
    present: ArrayLike,
    absent: ArrayLike,
    path: PathLike = None,
    title: str = "",
    threshold: float | None = 0.5,
) -> Figure:
    """Presence of phrases that are in their picture, and of phrases that fit nothing in it.

    Args:
        present, absent: (N,) and (M,) values in [0, 1].
        threshold: below it a phrase is "not found"; drawn with what it does to both. None: none.
    """
    present, absent = np.asarray(present, dtype=float), np.asarray(absent, dtype=float)
    figure = StyledFigure(figsize=(6.4, 3.9), layout="constrained")
    ax = figure.subplots()
    groups = (("in the picture", present, BAR_COLORS[0]), ("absent", absent, ABSENT_COLOR))
    for name, values, color in groups:
        percent = np.full(len(values), 100 / len(values))
        label = f"{name} (n = {len(values):,})"
        style = {"color": color, "alpha": 0.55, "edgecolor": "white", "linewidth": 0.6}
        ax.hist(values, np.linspace(0, 1, 21), weights=percent, label=label, **style)
    summary = f"AUROC {auroc(present, absent):.3f}"
    if threshold is not None:
        kept, refused = (present >= threshold).mean(), (absent < threshold).mean()
        summary += f"; threshold {threshold:g} keeps {kept:.1%} of those there, "
        summary += f"refuses {refused:.1%} of the absent"
        ax.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label="threshold")
    ax.set_title(summary, loc="left")
    ax.set(xlim=(0, 1), xlabel="presence: predicted probability that the phrase fits something")
    ax.set_ylabel("share of each kind's phrases (%)")
    ax.grid(axis="y", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3)
    return finish(figure, title, path)


@mpl.rc_context(STYLE)
def heatmap_grid(
    image: Image.Image,
    predictions: Sequence[Prediction],
    path: PathLike = None,
    title: str = "",
    truths_xyxy: Sequence[Sequence[float] | None] | None = None,
    threshold: float | None = None,
    columns: int = 3,
) -> Figure:
    """One picture, a panel for each phrase: where the model sees it, the box it gives, and the true one.

    Args:
        image: the picture that the predictions are of.
        predictions: of `Grounder.ground`, with heat maps.
        truths_xyxy: the true box of each phrase, corners in pixels of the picture, or None.
        threshold: a phrase whose presence is below it is "not found", and gets no box.
        columns: panels in a row.

    Raises:
        ValueError: no predictions, one without a heat map, or another number of true boxes.
    """
    if any(p.heatmap is None for p in predictions):
        raise ValueError("expected predictions with heat maps, got one without: this model gives none")
    truths = [None] * len(predictions) if truths_xyxy is None else truths_xyxy
    if len(truths) != len(predictions):
        raise ValueError(
            f"expected a true box, or None, for each prediction, got {len(predictions)} predictions and "
            f"{len(truths)} true boxes"
        )
    items = prediction_items(image, predictions, threshold)
    items = [item | {"truth_xyxy": box} for item, box in zip(items, truths, strict=True)]
    figure = prediction_grid(items, columns, title)
    panels = [ax for ax in figure.axes if ax.images]
    style = {"cmap": HEAT, "vmin": 0, "vmax": 1, "interpolation": "bilinear", "aspect": "auto"}
    for ax, prediction in zip(panels, predictions, strict=True):
        heat = ax.imshow(prediction.heatmap, extent=(0, image.width, image.height, 0), **style)
    figure.set_figwidth(figure.get_figwidth() + 0.8)  # the bar's
    bar = figure.colorbar(heat, ax=figure.axes, aspect=30, pad=0.02)
    bar.set_label("probability of lying in the box")
    return finish(figure, "", path)


def prediction_items(
    image: Image.Image, predictions: Sequence[Prediction], threshold: float | None = None
) -> list[dict]:
    """Items for `prediction_grid`; below the threshold a phrase has no box, and "not found" beside it."""
    items = []
    for p in predictions:
        answer = {"prediction_xyxy": p.box_xyxy, "score": p.score}
        if not p.is_found(threshold):
            answer = {"note": "not found"}
        items.append({"image": image, "phrase": p.phrase, "presence": p.presence} | answer)
    return items
