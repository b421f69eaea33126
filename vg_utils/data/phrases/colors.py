"""Coarse colours of things and of clothes, measured in the picture, with what cannot be excluded.

Every pixel is looked up in a table made in CIELAB: the colour that everybody would give it (or none), and all
colours that somebody might. A thing is "red" when most pixels of its middle are red beyond doubt and its
surroundings are not; it "may be red" when some of its pixels may be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from vg_utils.data.examples import DataError

# Lightness L, chroma C and hue h in degrees (may pass 360): (L from, to, C from, to, h from, to). Surely, and maybe.
COLORS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "black": ((0, 19, 0, 11, 0, 360), (0, 40, 0, 25, 0, 360)),
    "white": ((80, 101, 0, 10, 0, 360), (60, 101, 0, 22, 0, 360)),
    "gray": ((38, 70, 0, 7, 0, 360), (20, 88, 0, 16, 0, 360)),
    "red": ((16, 60, 38, 200, 12, 44), (5, 75, 18, 200, -20, 60)),
    "orange": ((50, 85, 52, 200, 48, 68), (35, 95, 25, 200, 35, 85)),
    "yellow": ((62, 101, 48, 200, 80, 107), (40, 101, 20, 200, 65, 118)),
    "green": ((18, 95, 24, 200, 118, 170), (5, 101, 8, 200, 92, 205)),
    "blue": ((12, 85, 22, 200, 245, 303), (3, 95, 7, 200, 195, 315)),
    "purple": ((12, 70, 26, 200, 309, 335), (5, 90, 9, 200, 290, 355)),
    "pink": ((50, 90, 26, 200, 338, 375), (35, 100, 9, 200, 320, 410)),
    "brown": ((18, 44, 17, 42, 46, 74), (5, 70, 6, 60, 20, 100)),
}
NAMES = tuple(COLORS)
SKIN = ("pink", "brown", "orange")  # never said of clothes: the middle of a person may be skin
STRICT_SHARE, POSSIBLE_SHARE, SECOND_SHARE = 0.35, 0.70, 0.12  # of a thing of one colour
PLAUSIBLE_SHARE = 0.40  # of a thing that somebody might give the colour
LEAST_PIXELS = 40
READ_SIDE = 160  # pixels: decoding a smaller picture is quicker, and coarse colours need no more
COVERED = 255
BITS = 5  # of each channel that the table looks at


@dataclass
class Measured:
    """Colours of one picture's objects: for each part ("whole", "top", "bottom") and object, two sets as bits.

    Attributes:
        sure: part -> for each object the colours that it has beyond doubt, bit c for `NAMES[c]`.
        maybe: part -> those that it may have; all of them where too little is seen.
    """

    sure: dict[str, list[int]] = field(default_factory=dict)
    maybe: dict[str, list[int]] = field(default_factory=dict)


ALL = (1 << len(NAMES)) - 1


def read_pixels(path: Path, size_wh: tuple[int, int]) -> np.ndarray:
    """The picture's colour codes, uint8 (h, w), at a reduced size.

    Raises:
        DataError: no picture that decodes, or one of another size than the annotations say.
    """
    try:
        with Image.open(path) as image:
            if image.size != tuple(size_wh):
                raise DataError(
                    f"{path}: expected {size_wh[0]}x{size_wh[1]} pixels, got {image.width}x{image.height}"
                )
            image.draft("RGB", (READ_SIDE, READ_SIDE))
            pixels = image.convert("RGB")
            if max(pixels.size) > 3 * READ_SIDE:
                pixels.thumbnail((2 * READ_SIDE, 2 * READ_SIDE))
    except DataError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected a picture that decodes, got: {error}") from error
    return codes_of(np.asarray(pixels))


def codes_of(rgb: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 (h, w): codes of the table."""
    high = (rgb >> (8 - BITS)).astype(np.uint16)
    return table()[0][(high[..., 0] << (2 * BITS)) | (high[..., 1] << BITS) | high[..., 2]]


@cache
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code of each RGB cell, uint8 (32768,); which codes are surely, and which maybe, a colour: bool (K, 11)."""
    steps = (np.arange(1 << BITS) + 0.5) / (1 << BITS)
    lightness, chroma, hue = lch(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3))
    both = []
    for which in (0, 1):
        columns = []
        for limits in (COLORS[name][which] for name in NAMES):
            low_l, high_l, low_c, high_c, low_h, high_h = limits
            in_hue = (hue - low_h) % 360 <= high_h - low_h
            columns.append(
                (low_l <= lightness) & (lightness < high_l) & (low_c <= chroma) & (chroma < high_c) & in_hue
            )
        both.append(np.stack(columns, 1))
    pairs, codes = np.unique(np.concatenate(both, 1), axis=0, return_inverse=True)
    assert len(pairs) < COVERED
    half = len(NAMES)
    return codes.reshape(-1).astype(np.uint8), pairs[:, :half], pairs[:, half:]


def lch(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sRGB in [0, 1], (N, 3) -> CIELAB (D65) as lightness [0, 100], chroma and hue in degrees [0, 360)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    a, b = 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])
    return 116 * f[:, 1] - 16, np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def measure(codes: np.ndarray, boxes: np.ndarray, is_person: list[bool], has_color: list[bool]) -> Measured:
    """Colours of the objects.

    Args:
        codes: of the picture, as `codes_of` gives them.
        boxes: (n, 4) corners in shares of the picture's sides.
        is_person: of each object; people have a "top" and a "bottom", other things a "whole".
        has_color: whether a colour may be said of the object at all.
    """
    _, surely, maybe = table()
    count = len(boxes)
    result = Measured({p: [0] * count for p in PARTS}, {p: [ALL] * count for p in PARTS})
    overall = np.bincount(codes.ravel(), minlength=len(surely))
    if is_gray(overall):
        return result
    height, width = codes.shape
    pixels = np.rint(boxes * [width, height, width, height]).astype(int)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rows = pixels.tolist()
    for i, (x1, y1, x2, y2) in enumerate(rows):
        if (x2 - x1) * (y2 - y1) < 2 * LEAST_PIXELS:
            continue
        crop = codes[y1:y2, x1:x2].copy()
        for j, (a, b, c, d) in enumerate(rows):
            if (
                j != i
                and a < x2
                and c > x1
                and b < y2
                and d > y1
                and (areas[j] < 1.3 * areas[i] or is_person[j])
            ):
                crop[max(b - y1, 0) : d - y1, max(a - x1, 0) : c - x1] = COVERED
        mx, my = max(2, (x2 - x1) // 5), max(2, (y2 - y1) // 8)
        outer = codes[max(y1 - my, 0) : y2 + my, max(x1 - mx, 0) : x2 + mx]
        around = counts(outer) - counts(codes[y1:y2, x1:x2])
        around_share = (around @ surely) / max(1, around.sum())
        bottom_cut = boxes[i, 3] > 0.97
        for part, region in regions(crop, is_person[i], bottom_cut):
            own = counts(region)
            total = own.sum()
            if total < LEAST_PIXELS or total < 0.35 * region.size:
                continue
            share, possible = (own @ surely) / total, (own @ maybe) / total
            if is_person[i] and part == "whole":
                result.maybe["whole"][i] = bits(share > 0.08)
                continue
            plausible = bits((possible > PLAUSIBLE_SHARE) | (share > 0.12))
            result.maybe[part][i] = plausible
            if has_color[i]:
                second = np.sort(share)[-2]
                said = (share > STRICT_SHARE) & (possible > POSSIBLE_SHARE) & (second < SECOND_SHARE)
                result.sure[part][i] = bits(said & (around_share < 0.5 * share))
        if is_person[i] and result.maybe["top"][i] == ALL:
            result.maybe["whole"][i] = ALL
    return result


PARTS = ("whole", "top", "bottom")


def regions(crop: np.ndarray, is_person: bool, bottom_cut: bool) -> list[tuple[str, np.ndarray]]:
    """Where to look for the colour: the middle of a thing; chest and legs of a person."""
    height, width = crop.shape

    def part(top: float, bottom: float, left: float, right: float) -> np.ndarray:
        return crop[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]

    if not is_person:
        return [("whole", part(0.2, 0.8, 0.2, 0.8))]
    slimness = height / max(1, width)
    found = [("whole", crop)]
    if bottom_cut and slimness < 1.8:
        found.append(("top", part(0.55, 0.95, 0.25, 0.75)))
    elif slimness > 1.6:
        found.append(("top", part(0.22, 0.45, 0.3, 0.7)))
    if not bottom_cut and slimness > 2.1:
        found.append(("bottom", part(0.55, 0.8, 0.3, 0.7)))
    return found


def counts(region: np.ndarray) -> np.ndarray:
    """Number of pixels of each code, without covered ones."""
    size = len(table()[1])
    return np.bincount(region.ravel(), minlength=size)[:size]


def is_gray(overall: np.ndarray) -> bool:
    """Whether the whole picture is black and white (or toned): there no colour is said."""
    colored = table()[1][:, 3:].any(1)
    return bool((overall @ colored) < 0.01 * overall.sum())


def bits(flags: np.ndarray) -> int:
    """A set of colours as the bits of a whole number."""
    return sum(1 << c for c, flag in enumerate(flags.tolist()) if flag)
