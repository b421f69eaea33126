"""Coarse colours of things and of clothes, measured in the image, with what cannot be excluded.

Every pixel is looked up in a table made in CIELAB: the colour that everybody would give it (or none), and all
colours that somebody might. A thing is "red" when most pixels of its middle are red beyond doubt and its
surroundings are not; it "may be red" when some of its pixels may be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from vg_utils.data.examples import DataError
from vg_utils.data.images import open_image, to_rgb, upright_size

# Lightness L, chroma C and hue h in degrees, which may pass 360: (L from, to, C from, to, h from, to) of what
# everybody would call by the name, and of what somebody might.
COLORS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "black": ((0, 20, 0, 12, 0, 360), (0, 40, 0, 25, 0, 360)),
    "white": ((75, 101, 0, 12, 0, 360), (60, 101, 0, 22, 0, 360)),
    "gray": ((36, 68, 0, 7, 0, 360), (20, 88, 0, 16, 0, 360)),
    "red": ((16, 60, 38, 200, 12, 44), (5, 75, 18, 200, -20, 60)),
    "orange": ((50, 85, 52, 200, 48, 68), (35, 95, 25, 200, 35, 85)),
    "yellow": ((62, 101, 48, 200, 80, 107), (40, 101, 20, 200, 65, 118)),
    "green": ((18, 95, 24, 200, 118, 170), (5, 101, 8, 200, 92, 205)),
    "blue": ((12, 85, 19, 200, 243, 305), (3, 95, 7, 200, 195, 315)),
    "purple": ((12, 70, 26, 200, 309, 335), (5, 90, 9, 200, 290, 355)),
    "pink": ((50, 90, 26, 200, 338, 375), (35, 100, 9, 200, 320, 410)),
    "brown": ((18, 44, 17, 42, 46, 74), (5, 70, 6, 60, 20, 100)),
}
NAMES = tuple(COLORS)
SKIN = ("pink", "brown", "orange")  # never said of clothes: the middle of a person may be skin
# Of the pixels of a thing of one colour: surely of it, maybe of it; surely of another, by the first share.
STRICT_SHARE, POSSIBLE_SHARE, SECOND_SHARE = 0.35, 0.65, 0.3
AROUND_SHARE = {"whole": 0.5, "top": 0.55, "bottom": 0.3}  # of the surroundings, likewise
AROUND_POSSIBLE = 0.7  # more in the surroundings, and it is the light that has the colour
PLAUSIBLE_SHARE = 0.40  # of a thing that somebody might give the colour
LEAST_PIXELS, ENOUGH_PIXELS = 16, 1000  # of a region
READ_SIDE = 160  # pixels: decoding a smaller image is quicker, and coarse colours need no more
COVERED = 255
BITS = 5  # of each channel that the table looks at


@dataclass
class Measured:
    """Colours of one image's objects: two sets, as bits, for each part ("whole", "top", "bottom").

    Attributes:
        sure: part -> for each object the colours that it has beyond doubt, bit c for `NAMES[c]`.
        maybe: part -> those that it may have; all of them where too little is seen.
    """

    sure: dict[str, list[int]] = field(default_factory=dict)
    maybe: dict[str, list[int]] = field(default_factory=dict)


ALL = (1 << len(NAMES)) - 1


def read_pixels(path: Path, size_wh: tuple[int, int]) -> np.ndarray:
    """The image's colour codes, uint8 (h, w), at a reduced size.

    Raises:
        DataError: no image that decodes, or one of another size than the annotations say.
    """
    with open_image(path) as image:
        if upright_size(image) != tuple(size_wh):
            width, height = upright_size(image)
            raise DataError(f"{path}: expected {size_wh[0]}x{size_wh[1]} pixels, got {width}x{height}")
        image.draft("RGB", (READ_SIDE, READ_SIDE))
        pixels = to_rgb(image)
        if max(pixels.size) > 3 * READ_SIDE:
            pixels.thumbnail((2 * READ_SIDE, 2 * READ_SIDE))
    return codes_of(np.asarray(pixels))


def codes_of(rgb: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 (h, w): codes of the table."""
    red, green, blue = (rgb[..., c].astype(np.uint16) >> (8 - BITS) for c in range(3))
    return table()[0].take((red << (2 * BITS)) | (green << BITS) | blue)


@cache
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code of each RGB cell, uint8 (32768,), and which codes surely and maybe are a colour: bool (K, 11)."""
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
    keys = np.concatenate(both, 1) @ (1 << np.arange(2 * len(NAMES)))
    _, first, codes = np.unique(keys, return_index=True, return_inverse=True)
    assert len(first) < COVERED
    return codes.reshape(-1).astype(np.uint8), both[0][first], both[1][first]


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
        codes: of the image, as `codes_of` gives them.
        boxes: (n, 4) corners in shares of the image's sides.
        is_person: of each object; people have a "top" and a "bottom", other things a "whole".
        has_color: whether a colour may be said of the object at all.
    """
    _, surely, maybe = table()
    count = len(boxes)
    result = Measured({p: [0] * count for p in PARTS}, {p: [ALL] * count for p in PARTS})
    overall = counts(thinned(codes))
    if is_gray(overall):
        return result
    sayable = ~tone(overall)
    height, width = codes.shape
    corners = np.rint(boxes * [width, height, width, height]).astype(int).tolist()
    covering = covers(boxes, np.array(is_person))
    for i, (x1, y1, x2, y2) in enumerate(corners):
        if (x2 - x1) * (y2 - y1) < 4 * LEAST_PIXELS:
            continue  # too small to tell: it may be of any colour
        crop = codes[y1:y2, x1:x2].copy()
        for a, b, c, d in (corners[j] for j in np.flatnonzero(covering[:, i])):
            crop[max(b - y1, 0) : d - y1, max(a - x1, 0) : c - x1] = COVERED
        around = around_box(codes, corners[i])
        around_share, around_possible = around @ surely, around @ maybe
        for part, region in regions(crop, is_person[i], boxes[i, 3] > 0.97):
            region = thinned(region)
            own = counts(region)
            total = own.sum()
            if total < LEAST_PIXELS or total < 0.35 * region.size:
                continue
            share, possible = (own @ surely) / total, (own @ maybe) / total
            if part == "body":
                result.maybe["whole"][i] = bits(share > 0.08)
                continue
            result.maybe[part][i] = bits((possible > PLAUSIBLE_SHARE) | (share > 0.12))
            if has_color[i]:
                second = np.sort(share)[-2]
                said = (share > STRICT_SHARE) & (possible > POSSIBLE_SHARE) & (second < SECOND_SHARE * share)
                said &= (
                    sayable
                    & (around_share < AROUND_SHARE[part] * share)
                    & (around_possible < AROUND_POSSIBLE)
                )
                result.sure[part][i] = bits(said)
        if is_person[i]:
            result.sure["bottom"][i] &= ~result.sure["top"][i]  # a long coat, or somebody who sits
            if result.maybe["top"][i] == ALL:
                result.maybe["whole"][i] = ALL
    return result


PARTS = ("whole", "top", "bottom")


def covers(boxes: np.ndarray, is_person: np.ndarray) -> np.ndarray:
    """Which boxes may hide a part of which, bool (n, n): smaller things in it, people who stand nearer."""
    x1, y1, x2, y2 = boxes.T
    meet = (x1[:, None] < x2) & (x2[:, None] > x1) & (y1[:, None] < y2) & (y2[:, None] > y1)
    area = (x2 - x1) * (y2 - y1)
    smaller = area[:, None] < 0.8 * area
    nearer = (is_person[:, None] & (y2[:, None] > y2 - 0.02)) | (y2[:, None] > y2 + 0.01)
    hidden = meet & ((smaller & ~is_person[:, None]) | nearer | (area[:, None] < 0.3 * area))
    np.fill_diagonal(hidden, False)
    return hidden


def around_box(codes: np.ndarray, corners: list[int]) -> np.ndarray:
    """Share of each code among the pixels left, right and above a box, float (K,)."""
    x1, y1, x2, y2 = corners
    mx, my = max(2, (x2 - x1) // 4), max(2, (y2 - y1) // 8)
    left, top = max(x1 - mx, 0), max(y1 - my, 0)
    around = codes[top:y2, left : x2 + mx].copy()
    around[y1 - top :, x1 - left : x2 - left] = COVERED
    own = counts(thinned(around))
    return own / max(1, own.sum())


def thinned(region: np.ndarray) -> np.ndarray:
    """Every second (third ...) row and column of a large region: a thousand pixels tell as much."""
    step = max(1, int((region.size / ENOUGH_PIXELS) ** 0.5))
    return region[::step, ::step]


def regions(crop: np.ndarray, is_person: bool, bottom_cut: bool) -> list[tuple[str, np.ndarray]]:
    """Where to look for the colour: the middle of a thing; chest and legs of a person.

    Where the chest is depends on how much of a person is seen: a slim box that ends within the image shows
    somebody who stands, a wide one that the lower edge cuts shows head and shoulders.
    """
    height, width = crop.shape

    def part(top: float, bottom: float, left: float, right: float) -> np.ndarray:
        return crop[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]

    if not is_person:
        return [("whole", part(0.25, 0.8, 0.2, 0.8))]
    slimness = height / max(1, width)
    if not bottom_cut and slimness < 1.5:  # arms spread or legs drawn up: the chest is anywhere
        return [("body", crop)]
    if bottom_cut:
        low, high = (0.6, 0.95) if slimness < 1.2 else (0.45, 0.75) if slimness < 1.9 else (0.28, 0.5)
    else:
        low, high = 0.22, 0.45
    found = [("body", crop), ("top", part(low, high, 0.3, 0.7))]
    if not bottom_cut and slimness > 2.4:
        found.append(("bottom", part(0.52, 0.72, 0.33, 0.67)))
    return found


def counts(region: np.ndarray) -> np.ndarray:
    """Number of pixels of each code, without covered ones."""
    size = len(table()[1])
    return np.bincount(region.ravel(), minlength=size)[:size]


def is_gray(overall: np.ndarray) -> bool:
    """Whether the whole image is black and white (or toned): there no colour is said."""
    colored = table()[1][:, 3:].any(1)
    return bool((overall @ colored) < 0.01 * overall.sum())


def tone(overall: np.ndarray) -> np.ndarray:
    """The colour that nearly all colour of the image is of, as of a toned photograph; bool (11,)."""
    shares = overall @ table()[1] * ~np.isin(NAMES, ("black", "white", "gray"))
    return (shares > 0.95 * shares.sum()) & (shares > 0.25 * overall.sum())


def bits(flags: np.ndarray) -> int:
    """A set of colours as the bits of a whole number."""
    return sum(1 << c for c, flag in enumerate(flags.tolist()) if flag)
