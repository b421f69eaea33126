"""Charts: training curves, where a model errs, how systems compare. See `vg_utils.figures.style`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vg_utils.evaluation.metrics import THRESHOLDS
from vg_utils.figures.style import (
    BAR_COLORS,
    INK,
    METRIC_NAMES,
    STYLE,
    TRAIN_COLOR,
    VAL_COLOR,
    PathLike,
    StyledFigure,
    finish,
    printable,
)


@mpl.rc_context(STYLE)
def training_curves(history: Sequence[Mapping], path: PathLike = None, title: str = "") -> Figure:
    """Loss, accuracy and, where measured, CLIP similarity over the epochs; the best epoch is marked.

    Args:
        history: one mapping an epoch with `epoch` and any of `train_`/`val_` + `loss, miou, acc@0.5,
            semantic_similarity`; what is missing, None or NaN is left out. Best is the highest `val_miou`.

    Raises:
        ValueError: an empty history.
    """
    if not history:
        raise ValueError("expected the history of at least one epoch, got none")
    table = pd.DataFrame(list(history)).set_index("epoch").apply(pd.to_numeric, errors="coerce")
    table = table.dropna(axis="columns", how="all")
    best = table["val_miou"].idxmax() if "val_miou" in table else None
    panels = [("loss", {"loss": "-"}), ("share in [0, 1]", {"miou": "-", "acc@0.5": "--"})]
    if "val_semantic_similarity" in table:
        panels.append(("CLIP cosine in [-1, 1]", {"semantic_similarity": "-"}))
    figure = StyledFigure(figsize=(4.1 * len(panels), 4), layout="constrained")
    for ax, (unit, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for metric, line in lines.items():
            for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
                if f"{split}_{metric}" in table:
                    values = table[f"{split}_{metric}"].dropna()
                    marker = "o" if len(values) < 3 else None  # a line of one point is invisible
                    style = {"linestyle": line, "linewidth": 1.7, "marker": marker, "markersize": 4}
                    label = f"{split} {METRIC_NAMES.get(metric, metric)}"
                    ax.plot(values.index, values, color=color, label=label, **style)
        ax.set(xlabel="epoch", ylabel=unit, xlim=(table.index.min() - 0.5, table.index.max() + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(linewidth=0.8)
        if "miou" in lines:
            ax.set_ylim(0, 1)
        if best is not None:
            ax.axvline(best, color=INK, linewidth=1, linestyle=":")
            note = f"dotted: best epoch {best}, val mIoU {table['val_miou'].max():.3f}"
            ax.set_title(note if "miou" in lines else "")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return finish(figure, title, path)


@mpl.rc_context(STYLE)
def iou_histogram(rows: pd.DataFrame, path: PathLike = None, title: str = "") -> Figure:
    """How the IoU is distributed, with its mean and the share of expressions that reach each threshold."""
    iou = rows["iou"].to_numpy(float)
    figure = StyledFigure(figsize=(6.4, 3.7), layout="constrained")
    ax = figure.subplots()
    percent = np.full(len(iou), 100 / len(iou))
    ax.hist(iou, np.linspace(0, 1, 21), weights=percent, color=BAR_COLORS[1], edgecolor="white")
    ax.axvline(iou.mean(), color=VAL_COLOR, linewidth=2, label=f"mean IoU {iou.mean():.3f}")
    for threshold, line in zip(THRESHOLDS, ("-", "--", ":"), strict=True):
        label = f"Acc@{threshold:g}: {(iou >= threshold).mean():.1%} at or right of the line"
        ax.axvline(threshold, color=INK, linewidth=1.2, linestyle=line, label=label)
    ax.set(xlim=(0, 1), xlabel="IoU of prediction and truth", ylabel=f"expressions (% of {len(iou):,})")
    ax.grid(axis="y", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2)
    return finish(figure, title, path)


@mpl.rc_context(STYLE)
def breakdown_bars(table: pd.DataFrame, by: str, path: PathLike = None, title: str = "") -> Figure:
    """Bars of one table of `metrics.breakdown`: mIoU with its interval, and Acc@0.5 as a dot.

    Args:
        table: with the columns `n, miou, miou_low, miou_high, acc@0.5` and the groups as its index.
        by: what the groups are: "length of the expression".
    """
    figure = StyledFigure(figsize=(6.4, 1.5 + 0.36 * len(table)), layout="constrained")
    ax, places = figure.subplots(), np.arange(len(table))
    errors = np.array([table["miou"] - table["miou_low"], table["miou_high"] - table["miou"]]).clip(min=0)
    _bars(ax, places, table["miou"], errors, 0.62, BAR_COLORS[1], "mIoU, 95% interval over images")
    dots = {"color": VAL_COLOR, "markersize": 5.5, "clip_on": False}  # whole ones at 0 and 1, too
    ax.plot(table["acc@0.5"], places, "o", label="Acc@0.5", **dots)
    groups = zip(table.index, table["n"], strict=True)
    ax.set_yticks(places, [f"{printable(group)}   (n = {n:,})" for group, n in groups])
    ax.set(xlim=(0, 1), xlabel="share in [0, 1]")
    ax.set_title(f"by {printable(by)}", loc="left")  # upright it would be longer than a chart of few bars
    return finish(figure, title, path, ax)


@mpl.rc_context(STYLE)
def compare_bars(results: Mapping[str, Mapping], path: PathLike = None, title: str = "") -> Figure:
    """Bars of mIoU and Acc@0.5 of systems beside each other, the first on top.

    Args:
        results: summary by system's name, as of `metrics.summarise`. A metric that a summary lacks is "not
            given" (a published number often stands alone), one without its `_ci95` has no whisker.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("expected at least one system to compare, got none")
    figure = StyledFigure(figsize=(7, 1.5 + 0.7 * len(results)), layout="constrained")
    ax, middle = figure.subplots(), np.arange(len(results))
    for metric, shift, color in (("miou", -0.2, BAR_COLORS[0]), ("acc@0.5", 0.2, BAR_COLORS[1])):
        values = np.array([summary.get(metric) for summary in results.values()], dtype=float)  # None is NaN
        bounds = [summary.get(f"{metric}_ci95") or (None, None) for summary in results.values()]
        low, high = np.array(bounds, dtype=float).T
        errors = np.array([values - low, high - values]).clip(min=0)
        _bars(ax, middle + shift, values, errors, 0.37, color, METRIC_NAMES[metric])
        for place, value, error in zip(middle + shift, values, np.nan_to_num(errors[1]), strict=True):
            text, end = (f"{value:.3f}", value + error) if pd.notna(value) else ("not given", 0)
            ax.text(end + 0.01, place, text, va="center", fontsize=8)
    ax.set(xlim=(0, 1.06), xlabel="share in [0, 1]; whiskers: 95% interval over images")
    ax.set_yticks(middle, [textwrap.fill(printable(name), 28) for name in results])
    return finish(figure, title, path, ax)


def _bars(ax: Axes, places, values, errors, height: float, color: str, label: str) -> None:
    ax.barh(places, values, height, xerr=errors, color=color, label=label, ecolor=INK, capsize=2.5)
