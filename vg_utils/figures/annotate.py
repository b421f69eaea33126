"""Boxes and phrases drawn on the image itself, at its own size: for people to keep, not for a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from vg_utils.figures.style import printable
from vg_utils.files import write_atomically
from vg_utils.models.prediction import Prediction

# One a phrase, told apart by most people with a colour vision deficiency (Okabe & Ito 2008), then again.
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
LONGEST_LABEL = 40  # letters
Box = tuple[float, float, float, float]


def annotate(
    image: Image.Image,
    predictions: Sequence[Prediction],
    threshold: float | None = None,
    only: str | None = None,
) -> Image.Image:
    """The image with the boxes on it, a colour a phrase, each with its phrase and score.

    A label stands where it covers least of what is named and of the labels before it: above a box, below, or
    beside it where there is room, in a corner of one that fills the image.

    Args:
        image: the original, of any mode; it stays as it is.
        predictions: of `Grounder.ground`.
        threshold: a phrase whose presence is below it is not drawn.
        only: draw this phrase alone, in the colour that it has among all.

    Returns:
        mode RGB, of the image's size.
    """
    drawn = image.convert("RGB")
    found = [p for p in predictions if p.is_found(threshold) and only in (None, p.phrase)]
    different = dict.fromkeys(p.phrase for p in predictions)  # also not found: a phrase keeps its colour
    colors = dict(zip(different, cycle(COLORS), strict=False))
    pen, line = ImageDraw.Draw(drawn), max(2, round(max(drawn.size) / 300))
    font = _font(max(11, round(max(drawn.size) / 45)))
    for p in found:
        x1, y1, x2, y2 = _inside(p.box_xyxy, drawn.size)
        # The dark line around it keeps white visible on snow.
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="#111111", width=line + 2)
        pen.rectangle((x1, y1, x2, y2), outline=colors[p.phrase], width=line)
    labels: list[Box] = []
    for p in found:
        text = f"{_shortened(printable(p.phrase))} {p.score:.2f}"
        left, top, right, bottom = font.getbbox(text)
        pad = max(2, font.size // 5)
        size = (right - left + 2 * pad, bottom - top + 2 * pad)
        box = _inside(p.box_xyxy, drawn.size)
        place = _place(box, size, drawn.size, [*labels, *(q.box_xyxy for q in found if q is not p)])
        labels.append(place)
        pen.rectangle(place, fill=colors[p.phrase], outline="#111111")
        ink = "#ffffff" if _is_dark(colors[p.phrase]) else "#111111"
        pen.text((place[0] + pad - left, place[1] + pad - top), text, fill=ink, font=font)
    return drawn


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image of full colours under a temporary name, then rename it."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_atomically(path, lambda part: image.save(part, kind, **({"quality": 95} if kind == "JPEG" else {})))


def _place(box: Box, size: tuple[int, int], limits: tuple[int, int], others: Sequence[Box]) -> Box:
    """Where a label of `size` covers least: first of the box that it names, then of the `others`."""
    (x1, y1, x2, y2), (width, height), (right, bottom) = box, size, limits
    gap = 3  # the box's line
    starts = [x1, x2 - width, (x1 + x2 - width) / 2]
    corners = [(x, y) for y in (y1 - height - gap, y2 + gap) for x in starts]
    corners += [(x, y) for x in (x2 + gap, x1 - width - gap) for y in (y1, y2 - height)]
    corners += [(x, y) for y in (y1 + gap, y2 - height - gap) for x in (x1 + gap, x2 - width - gap)]
    placed = []
    for x, y in corners:
        x, y = max(0, min(x, right - width - 1)), max(0, min(y, bottom - height - 1))
        placed.append((x, y, x + width, y + height))
    return min(placed, key=lambda p: (_shared(p, box), sum(_shared(p, other) for other in others)))


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _inside(box: Box, size_wh: tuple[int, int]) -> Box:
    """The box with corners that are pixels of the image, the smaller first, whatever came."""
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])
    width, height = size_wh
    return (max(0, x1), max(0, y1), min(width - 1, x2), min(height - 1, y2))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 2].rstrip() + " …"


def _is_dark(color: str) -> bool:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 130


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the figures, which comes with matplotlib."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
