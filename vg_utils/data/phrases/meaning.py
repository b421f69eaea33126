"""What a phrase means: a noun and filters, applied in order to the objects of an image.

A meaning is plain data: `(noun, filter, filter ...)`. The noun is `("main", word)`, the large objects that
the word may mean, `("all", word)`, or `("chief", word)`, the one that dwarfs all others. Each filter is a
tuple of its kind and values:

    ("color", part, name)        part is "whole", "top", "bottom", "any" (whatever somebody wears)
    ("side", name)               in the left, right, middle, top or bottom of the image
    ("corner", level, side)      in the top or bottom, left or right of it
    ("most", direction)          farther in a direction than all others of those left over so far
    ("rank", k, direction)       the k-th from a side, of those left over so far
    ("inner",)                   of exactly three in a row, the one between the others
    ("pair", side)               of exactly two, the one on that side
    ("relation", name, meaning)  stands in a relation to something that fits another meaning
    ("nearest", meaning)         nearer to it than all others of those left over so far
    ("other", name)              of exactly two, the one that stands in a relation to the other
    ("told", text)               of whom a caption says so; it may be true of everybody else

A phrase is kept if exactly one object may fit its meaning and that one fits for certain; an absent phrase, if
no object may fit.
"""

from __future__ import annotations

import numpy as np

from vg_utils.data.phrases.objects import NOTHING, Fit, Objects, members
from vg_utils.data.phrases.relations import INVERSE, MIRRORED, related

Meaning = tuple
DIRECTIONS = ("left", "right", "top", "bottom", "largest", "smallest", "front", "back")
OPPOSITE = {"left": "right", "right": "left"}


def execute(meaning: Meaning, objects: Objects) -> Fit:
    """Who fits; results are kept in `objects`, because phrases share their beginnings.

    Raises:
        KeyError: no such filter.
    """
    found = objects.cache.get(meaning)
    if found is None:
        *before, (kind, *values) = meaning
        if before:
            fit = execute(tuple(before), objects)
            found = FILTERS[kind](objects, fit, *values) if fit.maybe else NOTHING
        else:
            found = objects.named(values[0], among=kind)
        objects.cache[meaning] = found
    return found


def only_one(meaning: Meaning, objects: Objects) -> int | None:
    """The object that the meaning means, if no other may be meant."""
    sure, maybe = execute(meaning, objects)
    return sure.bit_length() - 1 if sure and sure == maybe and not sure & (sure - 1) else None


def fits_nothing(meaning: Meaning, objects: Objects) -> bool:
    """Whether no object may fit."""
    return not execute(meaning, objects).maybe


def mirror(meaning: Meaning) -> Meaning:
    """The meaning in the mirrored image: left for right and the other way round.

    >>> mirror((("main", "dog"), ("most", "left")))
    (('main', 'dog'), ('most', 'right'))
    """
    swapped = {**OPPOSITE, **MIRRORED, **{INVERSE + a: INVERSE + b for a, b in MIRRORED.items()}}

    def swap(part):
        return mirror(part) if isinstance(part, tuple) else swapped.get(part, part)

    return (
        meaning[:1] + tuple(map(swap, meaning[1:]))
        if isinstance(meaning[0], str)
        else tuple(map(mirror, meaning))
    )


def by_color(objects: Objects, fit: Fit, part: str, color: str) -> Fit:
    sure, maybe = objects.colored(part, color)
    return Fit(fit.sure & sure, fit.maybe & (maybe | objects.crowd))


# Of a side of the image, in shares: centre and far edge at most, and the centre of a rival at most.
SIDE = (0.40, 0.62, 0.53)
LEVEL_RIVAL = 0.65  # likewise of a rival at the top or bottom, where people look less closely
MIDDLE = (0.10, 0.20)  # distance of the centre from the image's middle: at most, and of a rival


def by_side(objects: Objects, fit: Fit, side: str) -> Fit:
    sure = maybe = 0
    for i in members(fit.maybe):
        x1, y1, x2, y2 = objects.corners[i]
        if side == "middle":
            away = abs((x1 + x2) / 2 - 0.5)
            certain, possible = away < MIDDLE[0], away < MIDDLE[1]
        else:
            low, high = {
                "left": (x1, x2),
                "right": (1 - x2, 1 - x1),
                "top": (y1, y2),
                "bottom": (1 - y2, 1 - y1),
            }[side]
            centre = (low + high) / 2
            rival = SIDE[2] if side in OPPOSITE else LEVEL_RIVAL
            certain, possible = centre < SIDE[0] and high < SIDE[1], centre < rival
        sure |= certain << i
        maybe |= possible << i
    return Fit(sure & fit.sure, maybe | fit.maybe & objects.crowd)


def by_corner(objects: Objects, fit: Fit, level: str, side: str) -> Fit:
    return by_side(objects, by_side(objects, fit, level), side)


def by_most(objects: Objects, fit: Fit, direction: str) -> Fit:
    """Certain if ahead of all who may be meant; possible if nobody who is meant is ahead.

    One alone is not "most".
    """
    if fit.maybe.bit_count() < 2:
        return Fit(0, fit.maybe)
    ahead = AHEAD[direction]
    rows = [(i, objects.corners[i], objects.areas[i]) for i in members(fit.maybe)]
    sure = maybe = 0
    for row in rows:
        i = row[0]
        if fit.sure >> i & 1 and all(ahead(row, other) for other in rows if other is not row):
            sure |= 1 << i
        if not any(ahead(other, row) for other in rows if fit.sure >> other[0] & 1 and other is not row):
            maybe |= 1 << i
    return Fit(sure, maybe)


def _farther(low: int, high: int, sign: int):
    """Compares along one axis: both edges and the centre are farther, the centre by 7% of the side."""

    def ahead(one, other) -> bool:
        a, b = one[1], other[1]
        centre = (b[low] + b[high] - a[low] - a[high]) / 2 * sign
        return centre > 0.07 and (b[low] - a[low]) * sign > 0 and (b[high] - a[high]) * sign > 0

    return ahead


def _closer(one, other) -> bool:
    """Nearer to the camera: much larger, and not higher on the ground."""
    lower = one[1][3] - other[1][3]
    return (one[2] > 3 * other[2] and lower > 0.06) or (one[2] > 6 * other[2] and lower > -0.01)


AHEAD = {
    "left": _farther(0, 2, 1),
    "right": _farther(0, 2, -1),
    "top": _farther(1, 3, 1),
    "bottom": _farther(1, 3, -1),
    "largest": lambda one, other: one[2] > 2 * other[2],
    "smallest": lambda one, other: other[2] > 2 * one[2],
    "front": _closer,
    "back": lambda one, other: _closer(other, one),
}


ROW_HEIGHTS = 2.2  # of the tallest and the least tall that are counted together
ROW_AREAS = 4.0  # likewise of areas: nobody counts what shows as a strip
ROW_LEVELS = 0.7  # how far apart their middles may be, as a share of the tallest's height


def by_rank(objects: Objects, fit: Fit, rank: int, direction: str) -> Fit:
    """Certain where all who may be meant are meant, and stand clear of each other up to the one after."""
    if fit.maybe.bit_count() < rank and not fit.maybe & objects.crowd:
        return NOTHING  # of two there is no third
    if fit.sure != fit.maybe or fit.sure.bit_count() <= rank:
        return Fit(0, fit.maybe)
    row = members(fit.sure)
    heights, levels, areas = objects.height[row], objects.y[row], objects.area[row]
    alike = heights.max() < ROW_HEIGHTS * heights.min() and areas.max() < ROW_AREAS * areas.min()
    if not alike or np.ptp(levels) > ROW_LEVELS * heights.max():
        return Fit(0, fit.maybe)  # no row: nobody counts the far ones with the near ones
    ahead = AHEAD[direction]
    rows = [(i, objects.corners[i], objects.areas[i]) for i in row]
    axis, sign = (0, 1) if direction in ("left", "right") else (1, 1)
    sign = -sign if direction in ("right", "bottom") else sign
    rows.sort(key=lambda row: (row[1][axis] + row[1][axis + 2]) * sign)
    if all(ahead(one, other) for k, one in enumerate(rows[:rank]) for other in rows[k + 1 :]):
        return Fit(1 << rows[rank - 1][0], 1 << rows[rank - 1][0])
    return Fit(0, fit.maybe)


def by_inner(objects: Objects, fit: Fit) -> Fit:
    return by_rank(objects, fit, 2, "left") if fit.sure.bit_count() == 3 else Fit(0, fit.maybe)


def by_pair(objects: Objects, fit: Fit, side: str) -> Fit:
    if fit.maybe.bit_count() != 2 or fit.sure != fit.maybe:
        return Fit(0, fit.maybe) if fit.maybe.bit_count() > 1 else by_side(objects, fit, side)
    return by_most(objects, fit, side)


def by_relation(objects: Objects, fit: Fit, name: str, anchor: Meaning) -> Fit:
    anchors = execute(anchor, objects)
    surely, perhaps = related(objects, name)
    sure = maybe = 0
    for j in members(anchors.maybe):
        maybe |= perhaps[j]
        if anchors.sure >> j & 1:
            sure |= surely[j]
    return Fit(fit.sure & sure, fit.maybe & maybe)


def by_nearest(objects: Objects, fit: Fit, anchor: Meaning) -> Fit:
    j = only_one(anchor, objects)
    if j is None or fit.maybe >> j & 1 or fit.maybe.bit_count() < 2:
        return Fit(0, fit.maybe)
    gaps = objects.gaps[j]
    rivals = members(fit.maybe)
    sure = maybe = 0
    for i in rivals:
        others = [k for k in rivals if k != i]
        if fit.sure >> i & 1 and gaps[i] < 0.15 and all(gaps[i] + 0.1 < gaps[k] for k in others):
            sure |= 1 << i
        if not any(gaps[k] + 0.1 < gaps[i] for k in others if fit.sure >> k & 1):
            maybe |= 1 << i
    return Fit(sure, maybe)


def by_other(objects: Objects, fit: Fit, name: str) -> Fit:
    if fit.sure != fit.maybe or fit.sure.bit_count() != 2:
        return Fit(0, fit.maybe)
    one, two = members(fit.sure)
    surely, perhaps = related(objects, name)
    sure = (surely[two] >> one & 1) << one | (surely[one] >> two & 1) << two
    maybe = (perhaps[two] >> one & 1) << one | (perhaps[one] >> two & 1) << two
    if sure.bit_count() == 1 and name in (
        "behind",
        "in front of",
    ):  # certain one way round excludes the other
        maybe = sure
    return Fit(sure, maybe)


def by_told(objects: Objects, fit: Fit, text: str) -> Fit:
    return Fit(fit.sure & objects.told.get(text, 0), fit.maybe)


FILTERS = {
    "color": by_color,
    "side": by_side,
    "corner": by_corner,
    "most": by_most,
    "rank": by_rank,
    "inner": by_inner,
    "pair": by_pair,
    "relation": by_relation,
    "nearest": by_nearest,
    "other": by_other,
    "told": by_told,
}
