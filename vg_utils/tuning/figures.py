"""Figures of a study: how it went, which settings mattered, what it cost.

As in `vg_utils.figures.style`, every function returns a figure and saves it where a `path` is given, and none
goes through pyplot. Optuna's own drawings do, and give no room to a dozen settings with long names.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.tri import Triangulation
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

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
from vg_utils.tuning.storage import best_trial

FAILED_COLOR, BEST_COLOR = "#c0392b", "#e08a00"
SETTINGS_SHOWN = 6  # the most important ones
BETTER_SHARE = 0.25  # of the trials, that importance is about
VALUE = "best validation mIoU"
COSTS = {"latency": "latency of one question (ms)", "parameters": "parameters (millions)"}


def draw_study(study: optuna.Study, folder: Path, title: str) -> list[str]:
    """Every figure that the study has enough trials for; returns the names of the files."""
    drawn = []
    figures = {
        "history": draw_history,
        "curves": draw_curves,
        "importances": draw_importances,
        "slices": draw_slices,
        "contour": draw_contour,
        "parallel": draw_parallel,
    }
    if len(study.directions) > 1:
        figures["pareto"] = draw_pareto
    for name, draw in figures.items():
        wanted = 4 if name in ("importances", "slices", "contour", "parallel") else 1
        if len(_whole(study)) >= wanted:
            draw(study, folder / f"{name}.png", title)
            drawn.append(f"{name}.png")
    return drawn


@mpl.rc_context(STYLE)
def draw_history(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """Validation mIoU by trial, the best so far as a line; what failed or was lost stands at the foot."""
    figure, ax = _figure(7, 4)
    whole, pruned = _whole(study), _with_state(study, TrialState.PRUNED)
    for trials, color, label in ((whole, VAL_COLOR, "complete"), (pruned, TRAIN_COLOR, "pruned")):
        points = [(trial.number, trial.values[0]) for trial in trials if trial.values]
        if points:
            ax.scatter(*zip(*points, strict=True), s=22, color=color, label=f"{label} ({len(points)})")
    numbers = [trial.number for trial in whole]
    best = np.maximum.accumulate([trial.values[0] for trial in whole])
    ax.step(numbers, best, where="post", color=BEST_COLOR, label=f"best so far: {best[-1]:.3f}")
    if whole and whole[0].number == 0:
        value = whole[0].values[0]
        ax.axhline(value, color=INK, linewidth=1, linestyle=":", label=f"preset: {value:.3f}")
    failed = [trial.number for trial in _with_state(study, TrialState.FAIL)]
    if failed:
        foot = ax.get_ylim()[0]
        label = f"failed or lost ({len(failed)})"
        ax.scatter(failed, [foot] * len(failed), marker="x", color=FAILED_COLOR, label=label)
    ax.set(xlabel="trial", ylabel=VALUE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3)
    return finish(figure, f"{title}: search history", path)


@mpl.rc_context(STYLE)
def draw_curves(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """Validation mIoU over the epochs: complete trials against those that were pruned, and the best."""
    figure, ax = _figure(7, 4)
    groups = (
        (_with_state(study, TrialState.PRUNED), "#b9653f", "pruned", 1.0, "x"),
        (_whole(study), BAR_COLORS[1], "complete", 1.2, None),
        ([best_trial(study)], VAL_COLOR, "best", 2.4, None),
    )
    for trials, color, label, width, marker in groups:
        for i, trial in enumerate(trials):
            curve = trial.user_attrs.get("curve", [])
            name = f"{label} ({len(trials)})" if label != "best" else f"best: trial {trial.number}"
            epochs = range(1, len(curve) + 1)
            ax.plot(epochs, curve, color=color, linewidth=width, label=name if i == 0 else None)
            if marker and curve:
                ax.plot(len(curve), curve[-1], marker, color=color, markersize=5)  # where it was stopped
    ax.set(xlabel="epoch", ylabel="validation mIoU")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3)
    return finish(figure, f"{title}: pruned and complete trials", path)


@mpl.rc_context(STYLE)
def draw_importances(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """Which settings made a trial one of the better ones, as shares of one (see `importances_of`)."""
    importances = importances_of(study)
    figure, ax = _figure(8.5, 1.6 + 0.3 * len(importances))
    names, shares = list(importances), list(importances.values())
    places = np.arange(len(names))
    ax.barh(places, shares, 0.66, color=VAL_COLOR)
    for place, share in zip(places, shares, strict=True):
        ax.text(share + 0.005, place, f"{share:.2f}", va="center", fontsize=8)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    better = f"the best {BETTER_SHARE:.0%} of {len(_whole(study))} complete trials"
    ax.set(xlabel=f"importance for being in {better} (share)", ylabel="setting")
    ax.grid(axis="x", linewidth=0.8)
    return finish(figure, f"{title}: importance of the settings", path)


@mpl.rc_context(STYLE)
def draw_slices(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """Validation mIoU against each of the most important settings, later trials darker."""
    names = list(importances_of(study))[:SETTINGS_SHOWN]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = StyledFigure(figsize=(2.6 * columns + 0.9, 2.6 * rows + 0.7), layout="constrained")
    shades = ListedColormap(mpl.colormaps["Blues"](np.linspace(0.2, 1, 256)))  # its first is white
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    points = None
    for ax, name in zip(axes.flat, names, strict=False):
        trials = [trial for trial in _whole(study) if name in trial.params]
        values = [trial.values[0] for trial in trials]
        order = {"c": [trial.number for trial in trials], "cmap": shades, "vmin": 0}
        xs = _scale(ax, trials, name)
        points = ax.scatter(
            xs, values, s=34, edgecolor=INK, linewidth=0.4, **order, vmax=len(study.trials) - 1
        )
        ax.set_xlabel(name)
        ax.grid(linewidth=0.8)
    for ax in axes[:, 0]:
        ax.set_ylabel(VALUE)
    whole = MaxNLocator(integer=True)  # there is no half a trial
    figure.colorbar(points, ax=axes, label="trial", fraction=0.03, aspect=30, ticks=whole)
    return finish(figure, f"{title}: the most important settings, one by one", path)


@mpl.rc_context(STYLE)
def draw_contour(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """Validation mIoU over the two most important numbers that every trial has, interpolated between trials.

    Not Optuna's, which wants SciPy to go on beyond the trials; here what no trial surrounds stays white.
    """
    trials = _whole(study)
    names = [name for name in importances_of(study) if all(_is_number(t, name) for t in trials)][:2]
    figure, ax = _figure(6.4, 4.6)
    places, bent = [], []
    for name, axis in zip(names, (ax.xaxis, ax.yaxis), strict=True):
        places.append(np.array([trial.params[name] for trial in trials], dtype=float))
        log = _log_axis(axis, trials[0].distributions[name])
        bent.append(np.log(places[-1]) if log else places[-1])
        axis.set_label_text(name)
    heights = np.array([trial.values[0] for trial in trials])
    triangles = Triangulation(*(values / (np.ptp(values) or 1) for values in bent)).triangles
    filled = ax.tricontourf(Triangulation(*places, triangles), heights, levels=12, cmap="Blues")
    ax.scatter(*places, c=heights, cmap="Blues", s=26, edgecolor=INK, linewidth=0.7, zorder=3)
    best = int(heights.argmax())
    ax.plot(places[0][best], places[1][best], "*", color=BEST_COLOR, markersize=15, markeredgecolor=INK)
    ax.use_sticky_edges = False  # a map would end at its outermost dots and halve them
    ax.autoscale()
    ax.set_title("dots: complete trials, the star the best; between them interpolated, not measured")
    figure.colorbar(filled, ax=ax, label=VALUE)
    return finish(figure, f"{title}: mIoU over two settings", path)


@mpl.rc_context(STYLE)
def draw_parallel(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """The most important settings of each complete trial as one line, the better the darker.

    A line has a gap where a trial does without a setting (no delta where the loss is not Huber's).
    """
    names = list(importances_of(study))[:SETTINGS_SHOWN]
    trials = sorted(_whole(study), key=lambda trial: trial.values[0])  # the best are drawn last
    figure, ax = _figure(9.5, 5)
    heights = np.array([trial.values[0] for trial in trials])
    low, high = heights.min(), max(heights.max(), heights.min() + 1e-6)
    columns = [(heights - low) / (high - low)]
    _mark(ax, 0, [(0, f"{low:.3f}"), (1, f"{high:.3f}")])
    for place, name in enumerate(names, start=1):
        distribution = next(t.distributions[name] for t in trials if name in t.params)
        columns.append(np.array([_share(distribution, trial.params.get(name)) for trial in trials]))
        _mark(ax, place, _marks(distribution))
    color = mpl.colormaps["Blues"]
    for i, line in enumerate(np.array(columns).T):
        best = i == len(trials) - 1
        style = {"color": BEST_COLOR if best else color(0.2 + 0.7 * columns[0][i])}
        ax.plot(line, **style, linewidth=2.4 if best else 1.1, marker="o", markersize=3.5)
    labels = [VALUE, *names]
    ax.set_xticks(range(len(labels)), [label.replace(".", ".\n") for label in labels], fontsize=8)
    ax.set(xlim=(-0.15, len(labels) - 0.4), ylim=(-0.04, 1.04), yticks=[])
    ax.set_title(f"orange: the best, trial {trials[-1].number}; the darker a line, the higher its mIoU")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(axis="x", length=0)
    return finish(figure, f"{title}: settings of {len(trials)} complete trials", path)


@mpl.rc_context(STYLE)
def draw_pareto(study: optuna.Study, path: PathLike = None, title: str = "") -> Figure:
    """Validation mIoU against the second objective; the line joins the trials that no other beats in both."""
    figure, ax = _figure(7, 4.2)
    front = sorted(study.best_trials, key=lambda trial: trial.values[1])
    others = [trial for trial in _whole(study) if trial.number not in {t.number for t in front}]
    for trials, color, label in ((others, BAR_COLORS[1], "beaten in both"), (front, VAL_COLOR, "front")):
        if trials:
            points = [(trial.values[1], trial.values[0]) for trial in trials]
            style = {"markersize": 6, "linewidth": 1.2, "drawstyle": "steps-post"}
            line = "o-" if trials is front else "o"
            ax.plot(*zip(*points, strict=True), line, color=color, label=f"{label} ({len(trials)})", **style)
    for trial in front:
        place = (trial.values[1], trial.values[0])
        ax.annotate(str(trial.number), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    ax.set(xlabel=COSTS[study.user_attrs["asked"]["objective"]], ylabel=VALUE)
    ax.grid(linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2)
    return finish(figure, f"{title}: Pareto front (numbers: trials)", path)


def importances_of(study: optuna.Study) -> dict[str, float]:
    """Importance of each setting for being among the better trials, the greatest first; they sum to one.

    By PED-ANOVA (Watanabe et al. 2023), which needs no forest (scikit-learn) and knows conditional settings,
    over the complete trials. Of some thirty trials it is a hint, no proof.
    """
    with warnings.catch_warnings(action="ignore"):  # that it takes low for good, and is experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BETTER_SHARE)
        return optuna.importance.get_param_importances(
            study,
            evaluator=evaluator,
            target=lambda trial: -trial.values[0],  # it takes low for good
        )


def _scale(ax: Axes, trials: Sequence[FrozenTrial], name: str) -> list:
    """Make the axis what the setting's range is, and return the trials' places on it."""
    values = [trial.params[name] for trial in trials]
    distribution = trials[0].distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        choices = _choices(distribution)
        rotation = 0 if all(len(str(choice)) < 4 for choice in choices) else 40
        ax.set_xticks(range(len(choices)), [str(c) for c in choices], rotation=rotation)
        ax.set_xlim(-0.5, len(choices) - 0.5)
        return [choices.index(value) for value in values]
    _log_axis(ax.xaxis, distribution)
    return values


def _log_axis(axis: Axis, distribution: BaseDistribution) -> bool:
    """Make the axis logarithmic if the range is, with plain numbers on it; returns whether it is."""
    if not distribution.log:
        return False
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if distribution.high < 50 * distribution.low else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
    return True


def _is_number(trial: FrozenTrial, name: str) -> bool:
    return isinstance(trial.distributions.get(name), FloatDistribution)


def _share(distribution: BaseDistribution, value: Any) -> float:
    """Where in its range a value lies, in [0, 1]; NaN for None."""
    if value is None:
        return float("nan")
    if isinstance(distribution, CategoricalDistribution):
        return _choices(distribution).index(value) / max(1, len(distribution.choices) - 1)
    bend = np.log if distribution.log else float
    low, high = bend(distribution.low), bend(distribution.high)
    return float((bend(value) - low) / (high - low))


def _choices(distribution: CategoricalDistribution) -> list:
    """Numbers in their order, words as they stand."""
    choices = list(distribution.choices)
    return sorted(choices) if all(isinstance(c, int | float) for c in choices) else choices


def _marks(distribution: BaseDistribution) -> list[tuple[float, str]]:
    """What to write beside an axis of a setting: places in [0, 1] and texts."""
    if isinstance(distribution, CategoricalDistribution):
        return [(_share(distribution, choice), str(choice)) for choice in _choices(distribution)]
    return [(0.0, f"{distribution.low:g}"), (1.0, f"{distribution.high:g}")]


def _mark(ax: Axes, place: int, marks: Sequence[tuple[float, str]]) -> None:
    ax.axvline(place, color="#9aa3ad", linewidth=0.9, zorder=0)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    for share, words in marks:
        ax.text(place + 0.05, share, words, va="center", fontsize=8, bbox=box, zorder=4)


def _whole(study: optuna.Study) -> list[FrozenTrial]:
    return _with_state(study, TrialState.COMPLETE)


def _with_state(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(state,))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = StyledFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
