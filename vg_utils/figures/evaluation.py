"""Figures of an evaluation: confidence and presence, and all of them into one folder.

They follow the rules of `vg_utils.figures.style`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from vg_utils.data.examples import GroundingExample
from vg_utils.data.images import load_image
from vg_utils.evaluation.confidence import (
    FOUND_IOU,
    auroc,
    expected_calibration_error,
    presence_outcomes,
    reliability,
    risk_coverage,
)
from vg_utils.evaluation.metrics import breakdown
from vg_utils.evaluation.runs import Evaluation
from vg_utils.figures.charts import breakdown_bars, compare_bars, iou_histogram, training_curves
from vg_utils.figures.pictures import grid_items, prediction_grid, sample_rows, worst_failures
from vg_utils.figures.style import (
    BAR_COLORS,
    INK,
    STYLE,
    TRAIN_COLOR,
    VAL_COLOR,
    PathLike,
    StyledFigure,
    finish,
)

ABSENT_COLOR = "#d1603d"


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

    Beside it stand the best order there could be, all right answers first, and one that knows nothing. The
    full tenths in which the model makes no mistake are cut off.

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
    start = min(np.floor(10 * np.mean(ax.lines[0].get_ydata() == 0)) / 10, 0.9)
    faultless = f" (no mistake below {start:.0%})" if start else ""
    ax.set(xlim=(start, 1), ylim=(0, None))
    ax.set_xlabel(f"coverage: share of phrases answered, the surest first{faultless}")
    ax.set_ylabel(f"risk: share of answers with IoU below {threshold:g}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
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
    """Presence of phrases that are in their image, and of phrases that fit nothing in it.

    Args:
        present, absent: (N,) and (M,) values in [0, 1].
        threshold: below it a phrase is "not found"; drawn with what it does to both. None: none.
    """
    present, absent = np.asarray(present, dtype=float), np.asarray(absent, dtype=float)
    figure = StyledFigure(figsize=(6.4, 3.9), layout="constrained")
    ax = figure.subplots()
    groups = (("in the image", present, BAR_COLORS[0]), ("absent", absent, ABSENT_COLOR))
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


def draw_figures(
    folder: Path,
    evaluation: Evaluation,
    examples: Sequence[GroundingExample],
    history: Sequence[dict] = (),
    compared: dict[str, dict] | None = None,
) -> None:
    """Every figure of an evaluation, and of a training where its history comes along, into `folder`."""
    rows, result, absent = evaluation
    images = {example.image_id: example.image for example in examples}

    def load(image_id: int) -> Image.Image:
        return load_image(images[image_id])

    where = f"{result['model']} on {result['dataset']} {result['split']}"
    items = grid_items(sample_rows(rows, 9), load)
    prediction_grid(items, title=f"{where}: a random sample", path=folder / "predictions.jpg")
    worst_failures(rows, load, title=f"{where}: lowest IoU", path=folder / "failures.jpg")
    iou_histogram(rows, folder / "iou_histogram.png", f"{where}: IoU of {len(rows)} expressions")
    for by, table in breakdown(rows).items():
        breakdown_bars(table, by, folder / f"by_{by}.png", where)  # which says by what
    draw_confidence(folder, rows, absent, result, where)
    if history:
        title = f"{result['model']} on {result['dataset']}: training"
        training_curves(history, folder / "training_curves.png", title)
    if compared:
        title = (
            f"{result['dataset']} {result['split']}: systems and blind baselines, 95% intervals over images"
        )
        compare_bars(compared, folder / "comparison.png", title)


def draw_confidence(
    folder: Path, rows: pd.DataFrame, absent: pd.DataFrame | None, result: dict, where: str
) -> None:
    """The figures of those numbers of `confidence.confidence_of` that the result has."""
    if "ece" in result:
        title = f"{where}: score against IoU"
        reliability_diagram(rows["score"], rows["iou"], folder / "reliability.png", title)
        risk_coverage_curve(rows, folder / "risk_coverage.png", f"{where}: risk and coverage")
    if "presence_auroc" in result:
        title = f"{where}: presence of {len(rows)} expressions and {len(absent)} absent phrases"
        presence_histogram(rows["presence"], absent["presence"], folder / "presence.png", title)
        title, names = f"{where}: presence against truth", ("presence", "share present")
        path = folder / "presence_reliability.png"
        reliability_diagram(*presence_outcomes(rows, absent), path, title, names)
