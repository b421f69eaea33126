"""Figures: boxes on images, training curves, where a model errs and how systems compare.

Every function returns a matplotlib figure and saves it where a `path` is given. Nothing goes through pyplot:
no window opens, nothing stays open in the background, and a notebook shows a figure once, as a cell's last
value. The title is the caller's: name data set, split and model in it. Truth is green, prediction yellow.
"""

from __future__ import annotations

import io
import textwrap
from functools import cache
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vg_utils.files import write_atomically

PathLike = str | Path | None


TRUTH_COLOR, PREDICTION_COLOR = "#00b84a", "#ffd60a"


TRAIN_COLOR, VAL_COLOR, INK = "#8a9bb0", "#1f5fa8", "#2b2f36"


BAR_COLORS = ("#1f5fa8", "#93b7dd")


METRIC_NAMES = {"miou": "mIoU", "acc@0.5": "Acc@0.5", "semantic_similarity": "predicted to true crop"}


MAX_BYTES = 300_000  # of a saved figure: a repository carries it for ever
DPI = (150, 130, 110, 90, 70, 50)  # of figures of pixels: the first with which the file is small enough


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
    """The file's bytes; "jpg" and "png" lose pixels (down the `DPI`), "png" colours too, until they fit."""
    png, jpeg = kind == "png", kind in ("jpg", "jpeg")
    options = {"pil_kwargs": {"quality": 85}} if jpeg else {}
    most = DPI[0]
    for dpi in DPI:
        if dpi > max(most, DPI[-1]):
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=dpi, **options)
        if png and buffer.tell() > max_bytes:
            few_colors, buffer = Image.open(buffer).convert("RGB").quantize(256), io.BytesIO()
            few_colors.save(buffer, "png", optimize=True)
        if buffer.tell() <= max_bytes or not (png or jpeg):
            break
        most = dpi * (max_bytes / buffer.tell()) ** 0.5  # a smaller figure has more bytes a pixel, not fewer
    return buffer.getvalue()


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
