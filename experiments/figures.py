"""The figures of RESULTS.md. Every function returns a figure and saves it where a `path` is given."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.results import Study
from vg_utils.figures.style import INK, STYLE, TRAIN_COLOR, VAL_COLOR, PathLike, StyledFigure, finish

GROUPS = {  # group -> its name in legends, and its colour
    "long": ("the flagship, trained longer", "#12355b"),
    "systems": ("trained", "#1f5fa8"),
    "frozen": ("trained, backbones frozen", "#7fb0dd"),
    "training-free": ("no training: proposals ranked by CLIP", "#d98b2b"),
    "blind": ("blind: image or phrase withheld", "#9aa3ad"),
}
METRICS = {"miou": "mIoU", "acc@0.5": "Acc@0.5"}
LINES = ("#1f5fa8", "#d98b2b", "#3d9a50", "#b5449a", "#6d6f76", "#17a2a8")
MARKERS = "os^Dvp"
DARK = 0.55  # share from which a cell of the heat map is dark


@mpl.rc_context(STYLE)
def comparison(study: Study, path: PathLike = None) -> Figure:
    """Bars of mIoU and Acc@0.5 of all systems, with intervals."""
    rows = study.rows(*GROUPS)
    figure = StyledFigure(figsize=(9.5, 1.3 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    for ax, (metric, name) in zip(axes, METRICS.items(), strict=True):
        values = [row[metric] for row in rows]
        colors = [GROUPS[row["group"]][1] for row in rows]
        ax.barh(places, values, 0.7, color=colors, xerr=_errors(rows, metric), ecolor=INK, capsize=2.5)
        for place, row in zip(places, rows, strict=True):
            ax.text(row[f"{metric}_high"] + 0.012, place, f"{row[metric]:.3f}", va="center", fontsize=8)
        ax.set(xlim=(0, 1.1), xlabel=f"{name}, share in [0, 1]")
        ax.set_xticks(np.linspace(0, 1, 6))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", linewidth=0.8)
    axes[0].set_yticks(places, [row["label"] for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    there = dict.fromkeys(row["group"] for row in rows)
    handles = [Patch(color=GROUPS[group][1], label=GROUPS[group][0]) for group in there]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return finish(figure, "RefScenes test: all systems, with 95% intervals over images", path)


@mpl.rc_context(STYLE)
def training_minutes(study: Study, path: PathLike = None) -> Figure:
    """Val mIoU over the minutes of training, one line a system and seed."""
    figure = StyledFigure(figsize=(7.2, 4.8), layout="constrained")
    ax = figure.subplots()
    for i, row in enumerate(study.rows("systems", "long")):
        style = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 3.5}
        if row["group"] == "long":
            style |= {"color": GROUPS["long"][1], "linestyle": "--"}
        for j, (minutes, mious) in enumerate(progress(study, row["name"])):
            ax.plot(minutes, mious, label=None if j else row["label"], linewidth=1.2, **style)
    ax.set(xlabel="minutes of training", ylabel="mIoU on val, share in [0, 1]", ylim=(0, 1))
    ax.set_xlim(left=0)
    ax.grid(linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3)
    return finish(figure, "RefScenes val: mIoU by minutes of training, one line a seed", path)


@mpl.rc_context(STYLE)
def learning_curve(study: Study, path: PathLike = None) -> Figure:
    """mIoU on test over the number of training images, one line a system."""
    rows = curve_rows(study)
    figure = StyledFigure(figsize=(6.6, 4.4), layout="constrained")
    ax = figure.subplots()
    for i, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        line = sorted((row for row in rows if row["label"] == label), key=lambda row: row["images"])
        style = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        x, y = [row["images"] for row in line], [row["miou"] for row in line]
        ax.errorbar(x, y, yerr=_errors(line, "miou"), label=label, capsize=3, linewidth=1.7, **style)
    sizes = sorted({row["images"] for row in rows})
    ax.set_xscale("log")
    ax.set_xticks(_apart(sizes))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="training images (logarithmic)", ylabel="mIoU on test, share in [0, 1]")
    ax.set_ylim(bottom=0)
    ax.grid(linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3)
    return finish(figure, "RefScenes test: mIoU by training images, 95% intervals", path)


@mpl.rc_context(STYLE)
def families(study: Study, path: PathLike = None) -> Figure:
    """Acc@0.5 of every system on every family of expressions, as a heat map."""
    names, counts, rows, cells = family_table(study)
    figure = StyledFigure(figsize=(3.2 + 0.75 * len(names), 1.6 + 0.32 * len(rows)), layout="constrained")
    ax = figure.subplots()
    mesh = ax.pcolormesh(cells, cmap="Blues", vmin=0, vmax=1, edgecolor="white", linewidth=1)
    for (i, j), value in np.ndenumerate(cells):
        if not np.isnan(value):
            color = "white" if value > DARK else INK
            ax.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    ax.set_yticks(np.arange(len(rows)) + 0.5, [row["label"] for row in rows])
    labels = [f"{name}\nn = {counts[name]:,}" for name in names]
    ax.set_xticks(np.arange(len(names)) + 0.5, labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(xlabel="family of expressions and their number")
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=ax, label="Acc@0.5, share in [0, 1]", fraction=0.04, pad=0.02)
    return finish(figure, "RefScenes test: Acc@0.5 by family of expressions", path)


@mpl.rc_context(STYLE)
def ablation(study: Study, path: PathLike = None) -> Figure:
    """What each change of the flagship costs, as paired differences with intervals."""
    rows = difference_rows(study, "ablation")
    figure = StyledFigure(figsize=(7.4, 1.6 + 0.36 * len(rows)), layout="constrained")
    ax, places = figure.subplots(), np.arange(len(rows))
    for metric, shift, color, marker in (
        ("miou", -0.13, VAL_COLOR, "o"),
        ("acc@0.5", 0.13, TRAIN_COLOR, "s"),
    ):
        name = f"{metric}_difference"
        values = [row[name] for row in rows]
        style = {"fmt": marker, "color": color, "markersize": 5, "capsize": 3, "label": METRICS[metric]}
        ax.errorbar(values, places + shift, xerr=_errors(rows, name), **style)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(places, [row["label"] for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set(xlabel="difference to the unchanged model (share in [-1, 1]; left of 0 is worse)")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", linewidth=0.8)
    handles = [*ax.get_legend_handles_labels()[0], Line2D([], [], color=INK, label="unchanged")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return finish(figure, "RefScenes test: one change each, paired differences, 95% intervals", path)


def progress(study: Study, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each seed of a run the minutes after which it was scored on val, and the mIoU there.

    The epochs of a training see equally many images, so its minutes are shared evenly among them.
    """
    lines = []
    for curve in study.curves[study.curves["name"] == name].to_dict("records"):
        run = study.runs[(study.runs["name"] == name) & (study.runs["seed"] == curve["seed"])].iloc[0]
        epochs = np.array(curve["epoch"], float)
        if len(epochs):
            lines.append((epochs / epochs[-1] * run["train_seconds"] / 60, np.array(curve["val_miou"])))
    return lines


def curve_rows(study: Study) -> list[dict]:
    """Runs of the learning curve; on all images it is the system of the same name."""
    rows = study.rows("curve")
    there = {(row["label"], row["images"]) for row in rows}
    labels = {label for label, _ in there}
    ends = [row for row in study.rows("systems") if row["label"] in labels]
    return rows + [row for row in ends if (row["label"], row["images"]) not in there]


def family_table(
    study: Study, split: str = "test"
) -> tuple[list[str], dict[str, int], list[dict], np.ndarray]:
    """Families, their numbers of expressions, the rows of systems, and Acc@0.5 (rows, families)."""
    by = study.by[(study.by["by"] == "family") & (study.by["split"] == split)]
    cells = by.pivot(index="name", columns="group", values="acc@0.5")
    rows = [row for row in study.rows(*GROUPS, split=split) if row["name"] in cells.index]
    of_flagship = by[by["name"] == study.flagship].set_index("group")["n"]
    counts = {str(name): int(n) for name, n in of_flagship.items()}
    names = list(counts)
    return names, counts, rows, cells.loc[[row["name"] for row in rows], names].to_numpy(float)


def difference_rows(study: Study, group: str) -> list[dict]:
    """Runs that are compared with another one, the worst loss last."""
    rows = [row for row in study.rows(group) if not np.isnan(row["miou_difference"])]
    return sorted(rows, key=lambda row: -row["miou_difference"])


def _errors(rows: Sequence[dict], name: str) -> np.ndarray:
    """Lengths (2, n) of the whiskers below and above."""
    values, low, high = (np.array([row[f"{name}{end}"] for row in rows]) for end in ("", "_low", "_high"))
    return np.array([values - low, high - values]).clip(min=0)


def _apart(sizes: Sequence[int]) -> list[int]:
    """Those sizes whose labels do not overlap on a logarithmic axis, the largest among them."""
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or size * 1.35 <= kept[-1]:
            kept.append(size)
    return kept


FIGURES = {  # file -> what draws it, and the groups without which there is nothing to draw
    "results_comparison.png": (comparison, ("systems",)),
    "results_minutes.png": (training_minutes, ("systems",)),
    "results_learning_curve.png": (learning_curve, ("curve",)),
    "results_families.png": (families, ("systems",)),
    "results_ablation.png": (ablation, ("ablation",)),
}
