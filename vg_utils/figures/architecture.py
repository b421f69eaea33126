"""Architectures as figures: blocks and arrows laid out by hand, the shapes in them taken from a real run.

`shapes_of` runs a model once and notes what comes out of each of its parts; `draw_architecture` writes that
into the layout of that name in `LAYOUTS`. So a figure cannot claim a shape that the model does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from torch import Tensor

from vg_utils.figures.style import INK, STYLE, PathLike, StyledFigure, save_figure
from vg_utils.models.base import GroundingModel

Shape = tuple[int | str, ...]
COLORS = {  # kind of block: what it is called in the legend, its fill
    "input": ("input", "#e6e9ed"),
    "backbone": ("pretrained, frozen by default", "#c6dbf1"),
    "learned": ("learned", "#ffe2a0"),
    "fixed": ("without weights", "#ffffff"),
    "output": ("output", "#c5e9cf"),
}
COLUMN, ROW, WIDTH, HEIGHT = 2.15, 1.0, 1.75, 0.72  # inches

# name of the model -> block: (column, row, kind, text, whose shape), and arrows from block to block
LAYOUTS: dict[str, tuple[dict[str, tuple], list[str]]] = {
    "clip-hrnet": (
        {
            "image": (0, 0.5, "input", "image", "images"),
            "phrase": (0, 2, "input", "phrase", "tokens"),
            "hrnet": (1, 0, "backbone", "HRNet, stride 16", "image.map"),
            "clip": (1, 1, "backbone", "CLIP, image", "image.vector"),
            "text": (1, 2, "backbone", "CLIP, phrase", "text.vector"),
            "fine": (2, 0, "learned", "1×1 convolution", "project_map"),
            "what": (2, 1, "learned", "1×1 convolution", "project_image"),
            "said": (2, 2, "learned", "1×1 convolution", "project_text"),
            "reduce": (3, 1, "learned", "spread, concatenate,\n3 convolutions", "reduce"),
            "box_head": (4, 0.5, "learned", "box head", "box_head"),
            "score_head": (4, 1.5, "learned", "score head", "score_head"),
            "box": (5, 0.5, "output", "box", "out.boxes_cxcywh"),
            "score": (5, 1.5, "output", "score", "out.score"),
        },
        [
            "image hrnet fine reduce box_head box",
            "image clip what reduce",
            "phrase text said reduce score_head score",
        ],
    ),
    "clip-rpn-concat": (
        {
            "image": (0, 0, "input", "image", "images"),
            "phrase": (0, 1, "input", "phrase", "tokens"),
            "clip": (1, 0, "backbone", "CLIP, last map", "image.map"),
            "text": (1, 1, "backbone", "CLIP, phrase", "text.pooled"),
            "fuse": (2, 0.5, "learned", "repeat, concatenate,\n1×1 convolution", "fusion"),
            "rpn": (3, 0.5, "learned", "proposal head:\nobjectness of anchors", "out.objectness"),
            "nms": (4, 0.5, "fixed", "decode, suppress\noverlaps", "out.proposals_cxcywh"),
            "box": (5, 0, "output", "box: the best one", "out.boxes_cxcywh"),
            "score": (5, 1, "output", "score: objectness", "out.score"),
        },
        ["image clip fuse rpn nms box", "phrase text fuse", "nms score"],
    ),
    "clip-rpn-attention": (
        {
            "image": (0, 0, "input", "image", "images"),
            "phrase": (0, 1, "input", "phrase", "tokens"),
            "clip": (1, 0, "backbone", "CLIP, last map", "image.map"),
            "text": (1, 1, "backbone", "CLIP, phrase", "text.pooled"),
            "fuse": (2, 0.5, "learned", "map asks, text answers;\nfeed-forward", "fusion"),
            "rpn": (3, 0.5, "learned", "proposal head:\nobjectness of anchors", "out.objectness"),
            "nms": (4, 0.5, "fixed", "decode, suppress\noverlaps", "out.proposals_cxcywh"),
            "box": (5, 0, "output", "box: the best one", "out.boxes_cxcywh"),
            "score": (5, 1, "output", "score: objectness", "out.score"),
        },
        ["image clip fuse rpn nms box", "phrase text fuse", "nms score"],
    ),
    "detector-clip": (
        {
            "image": (0, 0, "input", "image", ""),
            "phrase": (0, 1, "input", "phrase", ""),
            "detector": (1, 0, "backbone", "detector:\nn proposals", ""),
            "crops": (2, 0, "backbone", "CLIP of each crop", ""),
            "text": (1, 1, "backbone", "CLIP, phrase", ""),
            "rules": (1, 2, "fixed", "rules: left, right,\nlargest ...", ""),
            "places": (3, 2, "fixed", "compare the places\nof the proposals", ""),
            "cosine": (3, 0.5, "fixed", "cosine, softmax\nover proposals", ""),
            "prior": (4, 0.5, "fixed", "times the factor\nfor its place", ""),
            "box": (5, 0, "output", "box: a proposal", ""),
            "score": (5, 1, "output", "score: its share", ""),
        },
        ["image detector crops cosine prior box", "phrase text cosine", "phrase rules places prior score"],
    ),
    "transvg": (
        {
            "image": (0, 0.5, "input", "image", "images"),
            "phrase": (0, 2, "input", "phrase", "tokens"),
            "clip": (1, 0, "backbone", "CLIP, three levels;\nthe middle one", "image.clip3"),
            "hrnet": (1, 1, "backbone", "HRNet, stride 16", "image.hrnet"),
            "text": (1, 2, "backbone", "CLIP, every word", "text.tokens"),
            "map": (2, 0.5, "learned", "merge the levels", "pyramid"),
            "words": (2, 2, "learned", "project; words see\neach other", "project_words"),
            "reg": (2, 3, "learned", "[REG] token", ""),
            "encoder": (3, 1.5, "learned", "transformer over\n[REG], words, cells", "encoder"),
            "box_head": (4, 1, "learned", "box head, on [REG]", "box_head"),
            "score_head": (4, 2, "learned", "score head, on [REG]", "score_head"),
            "box": (5, 1, "output", "box", "out.boxes_cxcywh"),
            "score": (5, 2, "output", "score", "out.score"),
        },
        [
            "image clip map encoder box_head box",
            "image hrnet map",
            "phrase text words encoder score_head score",
            "reg encoder",
        ],
    ),
    "dense-grounder": (
        {
            "image": (0, 0.5, "input", "image", "images"),
            "phrase": (0, 2, "input", "phrase", "tokens"),
            "clip": (1, 0, "backbone", "CLIP, three levels;\nthe middle one", "image.clip3"),
            "hrnet": (1, 1, "backbone", "HRNet, stride 16", "image.hrnet"),
            "text": (1, 2, "backbone", "CLIP, every word", "text.tokens"),
            "map": (2, 0.5, "learned", "merge the levels,\nadd places", "pyramid"),
            "words": (2, 2, "learned", "project; words see\neach other", "project_words"),
            "blocks": (3, 1.25, "learned", "conditioned blocks:\nscale, convolve, attend", "blocks.0"),
            "cell": (4, 0.5, "learned", "each cell: inside?\nfour distances", "cell"),
            "judge": (4, 2, "learned", "judge of the whole", "judge"),
            "box": (5, 0, "output", "box: weighted mean", "out.boxes_cxcywh"),
            "heatmap": (5, 1, "output", "heatmap", "out.heatmap"),
            "score": (5, 2, "output", "score, presence", "out.score"),
        },
        [
            "image clip map blocks cell box",
            "image hrnet map",
            "phrase text words blocks judge score",
            "cell heatmap",
        ],
    ),
}


@torch.no_grad()
def shapes_of(model: GroundingModel, images: Tensor, tokens: Tensor, image_index: Tensor) -> dict[str, Shape]:
    """Shapes of what a model's parts put out, with B, N and L for images, phrases and tokens.

    Returns:
        By the name of the part, as in `named_modules`; and `images`, `tokens`, `image.KEY`, `text.KEY` and
        `out.KEY` for what the three steps take and return.
    """
    seen: dict[str, Tensor] = {"images": images, "tokens": tokens}

    def note(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and output.ndim:
                seen[name] = output

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        model.eval()
        image, text = model.encode_images(images), model.encode_texts(tokens)
        outputs = model(image, text, image_index)
    finally:
        for hook in hooks:
            hook.remove()
    for step, tensors in (("image", image), ("text", text), ("out", outputs)):
        seen |= {f"{step}.{key}": tensor for key, tensor in tensors.items()}
    b, n, length = len(images), len(tokens), tokens.shape[1]
    shapes = {}
    for name, tensor in seen.items():
        first, *rest = tensor.shape
        if rest[:1] == [length] and name.startswith(("tokens", "text.", "project_words")):
            rest[0] = "L"
        shapes[name] = ({b: "B", n: "N"}.get(first, first), *rest)
    return shapes


@mpl.rc_context(STYLE)
def draw_architecture(
    name: str, shapes: Mapping[str, Shape] | None = None, title: str = "", path: PathLike = None
) -> StyledFigure:
    """The blocks of a model, from image and phrase on the left to the box on the right.

    Args:
        name: a key of `LAYOUTS`.
        shapes: as `shapes_of` gives them; None leaves them out.
        title: of the figure; empty: the name.
        path: where to save it.
    """
    blocks, arrows = LAYOUTS[name]
    columns, rows = max(b[0] for b in blocks.values()) + 1, max(b[1] for b in blocks.values()) + 1
    figure, ax = _canvas(columns * COLUMN, rows * ROW, title or name)
    for column, row, kind, text, key in blocks.values():
        shape = (shapes or {}).get(key)
        _block(ax, column, row, kind, text, " × ".join(map(str, shape)) if shape else "")
    for chain in arrows:
        names = chain.split()
        for start, end in pairwise(names):
            _arrow(ax, blocks[start][:2], blocks[end][:2])
    _legend(figure, [kind for kind in COLORS if any(b[2] == kind for b in blocks.values())])
    if path is not None:
        save_figure(figure, path)
    return figure


@mpl.rc_context(STYLE)
def draw_hrnet(channels: Sequence[int], size: int, title: str = "", path: PathLike = None) -> StyledFigure:
    """HRNet's stages: a lower resolution joins at each, none is given up, and all exchange what they know.

    Args:
        channels: of the resolutions, the finest first.
        size: side of the input in pixels; the finest resolution has a quarter of it.
    """
    count = len(channels)
    figure, ax = _canvas((count + 1) * COLUMN, count * ROW + 0.3, title or "HRNet", left=-0.5)
    _block(ax, 0, 0, "input", "stem: two convolutions\nof stride 2", f"{size // 4} × {size // 4}")
    for stage in range(count):
        ax.text(
            (stage + 1) * COLUMN, 0.52 + 0.12, f"stage {stage + 1}", ha="center", fontsize=9, weight="bold"
        )
        for branch in range(stage + 1):
            side = size // 4 // 2**branch
            text, shape = f"stride {4 * 2**branch}", f"{side} × {side}"
            if stage:  # the first stage has channels of its own
                shape = f"{channels[branch]} × {shape}"
            _block(ax, stage + 1, branch, "backbone", text, shape)
            sources = range(min(stage, count)) if stage else [0]
            for source in sources:
                faint = {} if source == branch else {"color": "#a9b3be", "linewidth": 0.9}
                _arrow(ax, (stage, source), (stage + 1, branch), **faint)
    ax.set_ylim(-(count - 1) * ROW - 0.45, 0.95)
    if path is not None:
        save_figure(figure, path)
    return figure


def _canvas(width: float, height: float, title: str, left: float = 0) -> tuple[StyledFigure, Axes]:
    figure = StyledFigure(figsize=(width, height + 0.75), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-WIDTH / 2 - 0.1, width - COLUMN + WIDTH / 2 + 0.1), ylim=(-height + ROW / 2, ROW / 2))
    ax.set_aspect("equal")
    ax.set_axis_off()
    figure.suptitle(title)
    return figure, ax


def _block(ax: Axes, column: float, row: float, kind: str, text: str, shape: str) -> None:
    x, y = column * COLUMN, -row * ROW
    box = FancyBboxPatch(
        (x - WIDTH / 2, y - HEIGHT / 2),
        WIDTH,
        HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=COLORS[kind][1],
        edgecolor="#6d7783",
        linewidth=0.9,
        linestyle="--" if kind == "fixed" else "-",
        zorder=3,
    )
    ax.add_patch(box)
    ax.text(x, y + (0.12 if shape else 0), text, ha="center", va="center", fontsize=8.5, color=INK, zorder=4)
    if shape:
        ax.text(x, y - 0.24, shape, ha="center", va="center", fontsize=8, color="#1f5fa8", zorder=4)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    options = {"color": "#5b6672", "linewidth": 1.2, "zorder": 2} | style
    here = (start[0] * COLUMN + WIDTH / 2, -start[1] * ROW)
    there = (end[0] * COLUMN - WIDTH / 2, -end[1] * ROW)
    ax.add_patch(
        FancyArrowPatch(here, there, arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0, **options)
    )


def _legend(figure: StyledFigure, kinds: Sequence[str]) -> None:
    handles = []
    for kind in kinds:
        label, color = COLORS[kind]
        line = "--" if kind == "fixed" else "-"
        handles.append(
            Patch(facecolor=color, edgecolor="#6d7783", linewidth=0.8, linestyle=line, label=label)
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
