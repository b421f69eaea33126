"""Figures: boxes on pictures, training curves, where a model errs and how systems compare.

Every function returns a matplotlib figure and saves it where a `path` is given. Nothing goes through pyplot:
no window opens, nothing stays open in the background, and a notebook shows a figure once, as a cell's last
value. The title is the caller's: name data set, split and model in it. Truth is green, prediction yellow.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vg_utils.files import write_atomically
from vg_utils.metrics import THRESHOLDS

PathLike = str | Path | None
TRUTH_COLOR, PREDICTION_COLOR = "#00b84a", "#ffd60a"
TRAIN_COLOR, VAL_COLOR, INK = "#8a9bb0", "#1f5fa8", "#2b2f36"
BAR_COLORS = ("#1f5fa8", "#93b7dd")
METRIC_NAMES = {"miou": "mIoU", "acc@0.5": "Acc@0.5", "semantic_similarity": "predicted to true crop"}
MAX_BYTES = 300_000  # of a saved figure: a repository carries it for ever
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure looks the same everywhere
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,  # "the $5 bill or the $10 bill" is a phrase, no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.edgecolor": "#9aa3ad",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dfe3e8",
    "legend.frameon": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.facecolor": "white",
}


class StyledFigure(Figure):
    """A figure that keeps `STYLE` whenever it is drawn, and that notebooks show without pyplot."""

    def draw(self, renderer) -> None:
        with mpl.rc_context(STYLE):  # ticks are made while drawing
            super().draw(renderer)

    def _ipython_display_(self) -> None:
        from IPython import display

        # A photograph takes five times the bytes as PNG; a notebook holds several figures, in base64.
        kind = "jpeg" if any(ax.images for ax in self.axes) else "png"
        display.display(display.Image(data=encode_figure(self, kind, MAX_BYTES // 2), format=kind))


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure under a temporary name, then rename it; .jpg suits photographs, .png or .svg charts."""
    path = Path(path)
    write_atomically(path, encode_figure(figure, path.suffix.lstrip(".").lower()))
    return path


def encode_figure(figure: Figure, kind: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The file's bytes; "jpg" and "png" lose pixels (down to 50 dpi), "png" colours too, until they fit."""
    png, jpeg = kind == "png", kind in ("jpg", "jpeg")
    options = {"pil_kwargs": {"quality": 85}} if jpeg else {}
    for dpi in (150, 130, 110, 90, 70, 50):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=dpi, **options)
        if png and buffer.tell() > max_bytes:
            few_colors, buffer = Image.open(buffer).convert("RGB").quantize(256), io.BytesIO()
            few_colors.save(buffer, "png", optimize=True)
        if buffer.tell() <= max_bytes or not (png or jpeg):
            break
    return buffer.getvalue()


def draw_boxes(
    ax: Axes,
    image: Image.Image,
    phrase: str = "",
    truth_xyxy: Sequence[float] | None = None,
    prediction_xyxy: Sequence[float] | None = None,
    iou: float | None = None,
    score: float | None = None,
    presence: float | None = None,
    note: str = "",
) -> None:
    """Draw a picture with its true and its predicted box; the phrase, a note and the numbers are the title.

    Args:
        ax: where to; its axes count pixels of the picture.
        image: a picture of any mode and size.
        truth_xyxy: corners in pixels of the picture, or None; likewise `prediction_xyxy`.
        iou: of the two boxes, in [0, 1], or None.
        score: the model's confidence, or None.
        presence: the probability that the phrase fits anything, or None.
        note: before the numbers: "not found".
    """
    width, height = image.size
    shown = image.convert("RGB")
    shown.thumbnail((640, 640))  # more pixels than a panel has would only cost time
    ax.imshow(np.asarray(shown), extent=(0, width, height, 0), aspect="auto")
    # A strip is drawn thicker than it is, or there would be nothing to see.
    ax.set_box_aspect(np.clip(height / width, 1 / 8, 8))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], anchor="N")
    ax.spines[:].set(visible=True, color="#c3cad2", linewidth=0.6)
    for box, color in ((truth_xyxy, TRUTH_COLOR), (prediction_xyxy, PREDICTION_COLOR)):
        if box is not None:
            x1, y1, x2, y2 = np.clip(np.asarray(box, dtype=float), 0, [width, height, width, height])
            # The dark outline keeps yellow visible on snow and green visible on grass.
            outline = [patheffects.withStroke(linewidth=4, foreground="#111111")]
            style = {"edgecolor": color, "linewidth": 2.2, "path_effects": outline, "clip_on": False}
            ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, zorder=3, **style))
    numbers = (("IoU", iou), ("score", score), ("presence", presence))
    notes = [note] * bool(note) + [f"{name} {value:.2f}" for name, value in numbers if pd.notna(value)]
    # A letter of 9 pt takes 5.2 points; the layout, made later, widens panels to about 1.2 times the present.
    letters = max(16, int(1.2 * ax.get_position().width * ax.figure.get_figwidth() * 72 / 5.2))
    phrase = textwrap.fill(printable(phrase), letters, max_lines=3, placeholder=" …")
    lines = filter(None, (phrase, "   ".join(notes)))
    title = ax.set_title("\n".join(lines), fontsize=9, fontfamily="DejaVu Sans", color=INK)
    title.set_parse_math(False)  # the caller's axes may have come without STYLE


@mpl.rc_context(STYLE)
def prediction_grid(
    items: Sequence[dict], columns: int = 3, title: str = "", path: PathLike = None
) -> Figure:
    """Pictures with their boxes, side by side, under one legend.

    Args:
        items: dicts with `image`, `phrase` and, each optional or None, `truth_xyxy`, `prediction_xyxy`,
            `iou`, `score`, `presence`, `note`: the arguments of `draw_boxes`.
        columns: panels in a row.

    Raises:
        ValueError: no items.
    """
    if not items:
        raise ValueError("expected at least one prediction to draw, got none")
    columns = min(columns, len(items))
    width, title_height = 3.2, 0.5  # inches, of a panel
    shapes = [np.clip(item["image"].height / item["image"].width, 1 / 8, 1.4) for item in items]
    # A row is as high as its tallest picture, so that rows of landscape pictures leave no gap.
    starts = range(0, len(items), columns)
    heights = [title_height + width * max(shapes[start : start + columns]) for start in starts]
    figure = StyledFigure(figsize=(max(width * columns, 4), sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for ax in axes.flat[len(items) :]:
        ax.set_axis_off()
    for ax, item in zip(axes.flat, items, strict=False):
        draw_boxes(ax, **item)
    colors = {"truth": TRUTH_COLOR, "prediction": PREDICTION_COLOR}
    shown = [label for label in colors if any(item.get(f"{label}_xyxy") is not None for item in items)]
    swatch = {"edgecolor": "#111111", "linewidth": 0.8}
    handles = [Patch(facecolor=colors[label], label=label, **swatch) for label in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return finish(figure, title, path)


def sample_rows(rows: pd.DataFrame, k: int = 9, seed: int = 0) -> pd.DataFrame:
    """At most `k` expressions, one an image, at random by the seed: what to expect, not what looks best."""
    shuffled = rows.sort_values("sent_id").sample(frac=1, random_state=seed)
    return shuffled.drop_duplicates("image_id").head(k)


def worst_rows(rows: pd.DataFrame, k: int = 9) -> pd.DataFrame:
    """At most `k` expressions of lowest IoU, one an image; among equals the most confident mistake first."""
    ordered = rows.sort_values(["iou", "score", "sent_id"], ascending=[True, False, True])
    return ordered.drop_duplicates("image_id").head(k)


def grid_items(rows: pd.DataFrame, load: Callable[[int], Image.Image]) -> list[dict]:
    """Items for `prediction_grid` from rows of an evaluation; `load` gives the picture of an image_id."""
    return [
        {"image": load(row["image_id"]), "phrase": row["text"], "iou": row["iou"], "score": row["score"]}
        | {"truth_xyxy": [row[name] for name in ("tx1", "ty1", "tx2", "ty2")]}
        | {"prediction_xyxy": [row[name] for name in ("x1", "y1", "x2", "y2")]}
        for row in rows.to_dict("records")
    ]


def worst_failures(rows: pd.DataFrame, load: Callable[[int], Image.Image], k: int = 9, **grid) -> Figure:
    """The grid of `worst_rows`; `grid` are `columns`, `title` and `path`.

    For a fair sample: `prediction_grid(grid_items(sample_rows(rows), load))`.
    """
    return prediction_grid(grid_items(worst_rows(rows, k), load), **grid)


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


def finish(figure: Figure, title: str, path: PathLike, bars: Axes | None = None) -> Figure:
    """Title, what bar charts have in common (legend below, first bar on top), and the file."""
    if bars is not None:
        bars.invert_yaxis()
        bars.tick_params(axis="y", length=0)
        bars.grid(axis="x", linewidth=0.8)
        bars.figure.legend(loc="outside lower center", ncols=4)
    if title:
        letters = int(figure.get_figwidth() * 9.5)  # bold, of 11 pt
        figure.suptitle(textwrap.fill(printable(title), letters, max_lines=3, placeholder=" …"))
    if path is not None:
        save_figure(figure, path)
    return figure


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def printable(text: object) -> str:
    """The text on one line, with a hollow square for each character that the figures' font lacks."""
    return "".join(c if ord(c) in _glyphs() else "\u25a1" for c in " ".join(str(text).split()))
