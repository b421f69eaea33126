"""The meaning of RefScenes' expressions: small programs that are executed on what an image shows.

A program is a nested tuple; "the ball left of the red thing" is
`("relation", "left", (("shape", "sphere"),), ("only", (("color", "red"),)))`. Executing it gives the solid
that it means, or None where none fits, several do or one nearly does: what one could dispute is not used.
`fits_nothing` tells the case that none does, beyond dispute, apart from the others. Left and right mirror
each other exactly: with the words swapped a program means the same in the mirrored image.

`vg_utils.refscenes.expressions` invents programs for a given solid and puts them into words,
`vg_utils.refscenes.near_misses` changes them into such as fit nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

ATTRIBUTES = ("shape", "color", "material", "size")
SIDE_MARGIN = 0.07  # share of the image's width that makes left and right clear
ORDER_MARGIN = 0.05  # the same between neighbours in a row
DEPTH_MARGIN = 0.9  # world units that make behind and in front clear
ASIDE = 0.30  # behind and in front are disputable beyond this share of the width aside
AREA_RATIO = 1.4  # of the boxes, for larger and smaller
DISTANCE_RATIO = 1.35  # for nearest
MIRRORED = {"left": "right", "right": "left"}
SIZE_ORDER = {"small": 0, "medium": 1, "large": 2}
NEXT_SIZES = {"small": ("medium",), "medium": ("small", "large"), "large": ("medium",)}

Filter = tuple[tuple[str, str], ...]  # attributes and their values, all of which hold
Program = tuple
Verdicts = dict[int, bool | None]  # of the solids with the right attributes: fits, does not, open to dispute


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be told about the N solids of one image; lists with one entry for each.

    Attributes:
        looks: attribute to value, for every attribute in `ATTRIBUTES`.
        x: middle of the visible box, 0 at the left edge of the image and 1 at the right.
        depth: how far behind the middle of the scene, in world units.
        across: how far to the right of the middle of the scene, in world units.
        area: visible box as a share of the image.
    """

    looks: list[dict[str, str]]
    x: list[float]
    depth: list[float]
    across: list[float]
    area: list[float]

    def mirrored(self) -> Facts:
        """The facts of the mirrored image."""
        return Facts(self.looks, [1 - x for x in self.x], self.depth, [-a for a in self.across], self.area)


def mirror(program: Program) -> Program:
    """The program with left and right swapped."""
    return tuple(mirror(p) if isinstance(p, tuple) else MIRRORED.get(p, p) for p in program)


def select(facts: Facts, wanted: Filter) -> list[int]:
    """Solids that have all the attributes."""
    solids, looks = list(range(len(facts.looks))), facts.looks
    for name, value in wanted:
        solids = [i for i in solids if looks[i][name] == value]
    return solids


def judge(program: Program, facts: Facts) -> Verdicts:
    """What the program says of each solid that has the attributes it asks for; the others do not fit."""
    kind, *rest = program
    return OPERATIONS[kind](facts, *rest)


def execute(program: Program, facts: Facts) -> int | None:
    """The solid that the program means, or None where that is not exactly one or open to dispute."""
    return sole(judge(program, facts))


def fits_nothing(program: Program, facts: Facts) -> bool:
    """Whether the program means no solid at all, beyond dispute.

    It holds too where the program leans on a solid that is not there: nothing is left of a ball that does not
    exist. Sizes are the one attribute that the eye may mistake, so nothing may fit with a size a step off.
    """
    return all(is_nothing(judge(taken, facts)) for taken in loosened(program))


def loosened(program: Program) -> Iterator[Program]:
    """The program, and all that differ from it by one step of one size."""
    yield program
    for place, part in enumerate(program):
        others = list(loosened(part))[1:] if isinstance(part, tuple) else NEXT_SIZES.get(part, ())
        yield from ((*program[:place], other, *program[place + 1 :]) for other in others)


def is_nothing(verdicts: Verdicts) -> bool:
    """Whether not one solid fits or may fit."""
    return all(verdict is False for verdict in verdicts.values())


def sole(verdicts: Verdicts) -> int | None:
    """The only solid that fits (True), unless another one may fit (None)."""
    fitting = [i for i, verdict in verdicts.items() if verdict]
    return fitting[0] if len(fitting) == 1 and None not in verdicts.values() else None


def winner(solids: list[int], best: int | None) -> Verdicts:
    """Verdicts where one of the solids is the most of something; None: it cannot be told which."""
    return {i: None if best is None else i == best for i in solids}


def ahead(ranked: list[tuple[float, int]], margin: float) -> int | None:
    """The solid of the smallest value, if it leads by the margin; there must be a second one."""
    ranked = sorted(ranked)
    return ranked[0][1] if len(ranked) > 1 and ranked[1][0] - ranked[0][0] >= margin else None


def only(facts: Facts, wanted: Filter) -> Verdicts:
    return dict.fromkeys(select(facts, wanted), True)


def extreme(facts: Facts, side: str, wanted: Filter) -> Verdicts:
    """The one furthest to a side: left, right, front or back."""
    solids = select(facts, wanted)
    values, margin = (facts.x, SIDE_MARGIN) if side in MIRRORED else (facts.depth, DEPTH_MARGIN)
    sign = 1 if side in ("left", "front") else -1
    return winner(solids, ahead([(sign * values[i], i) for i in solids], margin))


def zone(facts: Facts, where: str, wanted: Filter) -> Verdicts:
    """Those in the left, right or middle part of the image."""

    def verdict(x: float) -> bool | None:
        if where == "middle":
            near, far, position = 0.10, 0.18, abs(x - 0.5)
        else:
            near, far, position = 0.40, 0.55, x if where == "left" else 1 - x
        return True if position < near else False if position > far else None

    return {i: verdict(facts.x[i]) for i in select(facts, wanted)}


def order(facts: Facts, rank: int, side: str, wanted: Filter) -> Verdicts:
    """Number `rank` (from 1) of at least three in a row, counted from a side."""
    solids = select(facts, wanted)
    if rank > len(solids):
        return dict.fromkeys(solids, False)
    values, margin = (facts.x, ORDER_MARGIN) if side in MIRRORED else (facts.depth, DEPTH_MARGIN * 0.8)
    sign = 1 if side in ("left", "front") else -1
    row = sorted((sign * values[i], i) for i in solids)
    if len(row) < 3 or any(b[0] - a[0] < margin for a, b in pairwise(row)):
        return winner(solids, None)
    return winner(solids, row[rank - 1][1])


def superlative(facts: Facts, which: str, wanted: Filter) -> Verdicts:
    """The largest or smallest, to the eye and in truth."""
    solids = select(facts, wanted)
    sign = -1 if which == "largest" else 1
    values = sorted((facts.area[i] ** sign, i) for i in solids)
    if len(values) < 2 or values[1][0] < values[0][0] * AREA_RATIO:
        return winner(solids, None)
    best = values[0][1]
    truth = [sign * SIZE_ORDER[facts.looks[i]["size"]] for i in solids]
    return winner(solids, best if sign * SIZE_ORDER[facts.looks[best]["size"]] == min(truth) else None)


def excluding(facts: Facts, wanted: Filter, attribute: str, value: str) -> Verdicts:
    return {i: facts.looks[i][attribute] != value for i in select(facts, wanted)}


def holds(facts: Facts, relation: str, i: int, anchor: int) -> bool | None:
    """Whether solid i stands in the relation to the anchor; None where that is disputable."""
    if relation in MIRRORED:
        lead = facts.x[anchor] - facts.x[i] if relation == "left" else facts.x[i] - facts.x[anchor]
        return True if lead >= SIDE_MARGIN else False if lead <= -SIDE_MARGIN / 2 else None
    if relation in ("larger", "smaller"):
        sign = 1 if relation == "larger" else -1
        lead = sign * (SIZE_ORDER[facts.looks[i]["size"]] - SIZE_ORDER[facts.looks[anchor]["size"]])
        ratio = (facts.area[i] / facts.area[anchor]) ** sign
        return True if lead > 0 and ratio > AREA_RATIO else False if lead <= 0 and ratio < 1.1 else None
    lead = (
        facts.depth[i] - facts.depth[anchor] if relation == "behind" else facts.depth[anchor] - facts.depth[i]
    )
    if lead <= 0:
        return False
    return True if lead >= DEPTH_MARGIN and abs(facts.x[i] - facts.x[anchor]) <= ASIDE else None


def related(facts: Facts, relation: str, wanted: Filter, anchor: Program) -> Verdicts:
    """Those that stand in the relation to the solid that the program `anchor` means."""
    to = execute(anchor, facts)
    if to is None:
        return adrift(facts, wanted, anchor)
    return {i: holds(facts, relation, i, to) for i in select(facts, wanted) if i != to}


def nearest(facts: Facts, wanted: Filter, anchor: Program) -> Verdicts:
    """The one that stands closest to the solid that `anchor` means."""
    to = execute(anchor, facts)
    if to is None:
        return adrift(facts, wanted, anchor)
    solids = [i for i in select(facts, wanted) if i != to]
    ranked = sorted((distance(facts, i, to), i) for i in solids)
    clear = len(ranked) > 1 and ranked[1][0] >= DISTANCE_RATIO * ranked[0][0]
    return winner(solids, ranked[0][1] if clear else None)


def adrift(facts: Facts, wanted: Filter, *anchors: Program) -> Verdicts:
    """Verdicts where an anchor does not mean one solid: none fits if it means nothing, else who knows."""
    if any(is_nothing(judge(anchor, facts)) for anchor in anchors):
        return {}
    return winner(select(facts, wanted), None)


def distance(facts: Facts, i: int, j: int) -> float:
    """Distance on the ground in world units."""
    return ((facts.across[i] - facts.across[j]) ** 2 + (facts.depth[i] - facts.depth[j]) ** 2) ** 0.5


def between(facts: Facts, wanted: Filter, one: Program, two: Program) -> Verdicts:
    """Those between two solids, each meant by a program."""
    a, b = execute(one, facts), execute(two, facts)
    if a is None or b is None or a == b:
        return adrift(facts, wanted, one, two)
    return {i: lies_between(facts, i, a, b) for i in select(facts, wanted) if i not in (a, b)}


def between_pair(facts: Facts, wanted: Filter, pair: Filter) -> Verdicts:
    """Those between the two solids that have the attributes `pair`; where there are fewer, none are."""
    ends = select(facts, pair)
    if len(ends) < 2:
        return {}
    if len(ends) > 2:
        return winner(select(facts, wanted), None)
    return {i: lies_between(facts, i, *ends) for i in select(facts, wanted) if i not in ends}


def lies_between(facts: Facts, i: int, a: int, b: int) -> bool | None:
    """Whether solid i stands on the ground between a and b, near the line that joins them."""
    dx, dy = facts.across[b] - facts.across[a], facts.depth[b] - facts.depth[a]
    ex, ey = facts.across[i] - facts.across[a], facts.depth[i] - facts.depth[a]
    length = dx * dx + dy * dy
    along, off = (ex * dx + ey * dy) / length, abs(ex * dy - ey * dx) / length  # both as shares of the line
    if 0.2 <= along <= 0.8 and off <= 0.33:
        return True
    return False if along < 0.05 or along > 0.95 or off > 0.55 else None


OPERATIONS: dict[str, Callable[..., Verdicts]] = {
    "only": only,
    "extreme": extreme,
    "zone": zone,
    "order": order,
    "superlative": superlative,
    "except": excluding,
    "relation": related,
    "nearest": nearest,
    "between": between,
    "between pair": between_pair,
}
