"""Figures of images: boxes on them, where a model looks, what it gets right and wrong.

Truth is green, prediction yellow. See `vg_utils.figures.style` for what all figures share.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from vg_utils.figures.style import (
    INK,
    PREDICTION_COLOR,
    STYLE,
    TRUTH_COLOR,
    PathLike,
    StyledFigure,
    finish,
    printable,
)
from vg_utils.models.prediction import Prediction


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
    grey: bool = False,
) -> None:
    """Draw an image with its true and its predicted box; the phrase, a note and the numbers are the title.

    Beside a true box the predicted one is dashed, so that where they meet both are seen.

    Args:
        ax: where to; its axes count pixels of the image.
        image: an image of any mode and size.
        truth_xyxy: corners in pixels of the image, or None; likewise `prediction_xyxy`.
        iou: of the two boxes, in [0, 1], or None.
        score: the model's confidence, or None.
        presence: the probability that the phrase fits anything, or None.
        note: before the numbers: "not found".
        grey: show the image dark and without its colours, under a heat map.
    """
    width, height = image.size
    shown = image.convert("RGB")
    shown.thumbnail((640, 640))  # more pixels than a panel has would only cost time
    if grey:
        shown = _dimmed(shown)
    ax.imshow(np.asarray(shown), extent=(0, width, height, 0), aspect="auto")
    # A strip is drawn thicker than it is, or there would be nothing to see.
    ax.set_box_aspect(np.clip(height / width, 1 / 8, 8))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], anchor="N")
    ax.spines[:].set(visible=True, color="#c3cad2", linewidth=0.6)
    dashes = (0, (3, 2)) if truth_xyxy is not None else "solid"
    boxes = ((truth_xyxy, TRUTH_COLOR, "solid"), (prediction_xyxy, PREDICTION_COLOR, dashes))
    for box, color, line in boxes:
        if box is not None:
            x1, y1, x2, y2 = np.clip(np.asarray(box, dtype=float), 0, [width, height, width, height])
            # The dark outline keeps yellow visible on snow and green visible on grass.
            outline = [patheffects.withStroke(linewidth=4, foreground="#111111")]
            style = {"edgecolor": color, "linewidth": 2.2, "linestyle": line, "path_effects": outline}
            ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, zorder=3, clip_on=False, **style))
    numbers = (("IoU", iou), ("score", score), ("presence", presence))
    notes = [note] * bool(note) + [f"{name} {value:.2f}" for name, value in numbers if pd.notna(value)]
    # A letter of 9 pt takes 5.2 points; the layout, made later, widens panels to about 1.2 times the present.
    letters = max(16, int(1.2 * ax.get_position().width * ax.figure.get_figwidth() * 72 / 5.2))
    phrase = textwrap.fill(printable(phrase), letters, max_lines=3, placeholder=" …")
    lines = filter(None, (phrase, "   ".join(map(printable, notes))))
    title = ax.set_title("\n".join(lines), fontsize=9, fontfamily="DejaVu Sans", color=INK)
    title.set_parse_math(False)  # the caller's axes may have come without STYLE


@mpl.rc_context(STYLE)
def prediction_grid(
    items: Sequence[dict], columns: int = 3, title: str = "", path: PathLike = None
) -> Figure:
    """Images with their boxes, side by side, under one legend.

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
    # A row is as high as its tallest image, so that rows of landscape images leave no gap.
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
    """Items for `prediction_grid` from rows of an evaluation; `load` gives the image of an image_id."""
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


# Perceptually uniform, without the yellow end, from which a yellow box would not stand out. What is unlikely
# shows the image, which is grey and dark so that any colour is the map's.
HEAT = ListedColormap(
    mpl.colormaps["plasma"](np.linspace(0.35, 0.77, 256)) * [1, 1, 1, 0]
    + np.linspace(0, 1, 256)[:, None] ** 0.75 * [0, 0, 0, 0.9]
)


def overlay_heatmap(image: Image.Image, heatmap: Tensor) -> Image.Image:
    """The image, dark and without its colours, under the map of one prediction.

    Args:
        image: of any mode.
        heatmap: float (H, W) in [0, 1], of the whole image: `Prediction.heatmap`.

    Returns:
        mode RGB, of the image's size.
    """
    coarse = Image.fromarray(np.asarray(heatmap, dtype=np.float32))
    heat = coarse.resize(image.size, Image.Resampling.BILINEAR)
    colors = Image.fromarray(HEAT(np.asarray(heat), bytes=True))  # RGBA
    return Image.alpha_composite(_dimmed(image).convert("RGBA"), colors).convert("RGB")


def _dimmed(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(ImageOps.grayscale(image)).enhance(0.7).convert("RGB")


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
    """One image, a panel for each phrase: where the model sees it, the box it gives, and the true one.

    Args:
        image: the image that the predictions are of.
        predictions: of `Grounder.ground`, with heat maps.
        truths_xyxy: the true box of each phrase, corners in pixels of the image, or None.
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
    items = [item | {"truth_xyxy": box, "grey": True} for item, box in zip(items, truths, strict=True)]
    figure = prediction_grid(items, columns, title)
    panels = [ax for ax in figure.axes if ax.images]
    style = {"cmap": HEAT, "vmin": 0, "vmax": 1, "interpolation": "bilinear", "aspect": "auto"}
    for ax, prediction in zip(panels, predictions, strict=True):
        heat = ax.imshow(prediction.heatmap, extent=(0, image.width, image.height, 0), **style)
    figure.set_figwidth(figure.get_figwidth() + 0.8)  # the bar's
    bar = figure.colorbar(heat, ax=figure.axes, aspect=30, pad=0.02)
    bar.ax.set_facecolor("#444444")  # about what the image is under the map
    bar.set_label("probability of lying in the box")
    return finish(figure, "", path)


def prediction_items(
    image: Image.Image, predictions: Sequence[Prediction], threshold: float | None = None
) -> list[dict]:
    """Items for `prediction_grid`; below the threshold a phrase has no box, and "not found" beside it.

    Words that the model does not know are named there too.
    """
    items = []
    for p in predictions:
        answer, notes = {"prediction_xyxy": p.box_xyxy, "score": p.score}, []
        if not p.is_found(threshold):
            answer, notes = {}, ["not found"]
        if p.unknown_words:
            notes.append(textwrap.shorten(f"unknown: {', '.join(p.unknown_words)}", 40, placeholder=" …"))
        item = {"image": image, "phrase": p.phrase, "presence": p.presence, "note": "; ".join(notes)}
        items.append(item | answer)
    return items
