"""Which objects stand in a relation to which: for certain, and possibly, from their boxes.

Each rule takes the objects and returns two tables, bool (n, n): row i, column j says that "i RELATION j"
holds for certain, and that somebody might say so. What lies between the two is never decided.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.objects import Objects, rows_as_bits

Tables = tuple[np.ndarray, np.ndarray]


def of_classes(objects: Objects, categories: tuple[str, ...]) -> np.ndarray:
    """Whether each object is of one of the classes, bool (n,)."""
    return np.array([category in categories for category in objects.categories])


def left_of(objects: Objects) -> Tables:
    x, (x1, _, x2, _) = objects.x, objects.boxes.T
    apart = (x2[:, None] < x[None, :]) & (x[:, None] < x1[None, :]) & (x[None, :] - x[:, None] > 0.1)
    return apart & (objects.y_overlap > 0.3), x[:, None] < x[None, :] + 0.02


def right_of(objects: Objects) -> Tables:
    sure, maybe = left_of(objects)
    return sure.T, maybe.T


def above(objects: Objects) -> Tables:
    y, (_, y1, _, y2) = objects.y, objects.boxes.T
    apart = (y2[:, None] < y[None, :]) & (y[:, None] < y1[None, :]) & (y[None, :] - y[:, None] > 0.1)
    # An airplane may stand on the ground behind what is "below" it.
    airborne = of_classes(objects, lexicon.AIRBORNE) & ~of_classes(objects, (*lexicon.WORN, "airplane"))
    hung = airborne | of_classes(objects, lexicon.STACKED)
    level = (hung[:, None] & hung) | (
        airborne[:, None] ^ airborne
    )  # on the ground, higher up means farther away
    return apart & level & (objects.x_overlap > 0.5), y[:, None] < y[None, :] + 0.02


def below(objects: Objects) -> Tables:
    sure, maybe = above(objects)
    return sure.T, maybe.T


def next_to(objects: Objects) -> Tables:
    tall = objects.height[:, None] / objects.height[None, :]
    beside = (objects.x_overlap < 0.25) & (objects.y_overlap > 0.5) & (tall > 0.3) & (tall < 3.3)
    size = np.minimum(objects.width[:, None], objects.width[None, :])
    return beside & (objects.gap < 0.04) & (objects.gap < 0.5 * size), objects.gap < 0.2


def behind(objects: Objects) -> Tables:
    """Partly hidden: boxes overlap and one stands clearly higher. Nobody is behind what he uses."""
    bottom, share = (
        objects.boxes[:, 3],
        objects.intersection / np.minimum(objects.area[:, None], objects.area[None, :]),
    )
    higher = bottom[:, None] < bottom[None, :] - 0.06
    ground = ~of_classes(objects, lexicon.AIRBORNE)
    person = of_classes(objects, (lexicon.PERSON,))
    animal = of_classes(objects, lexicon.ANIMALS)
    vehicle = of_classes(objects, ("car", "truck", "bus"))
    kinds = (person[:, None] & person) | (animal[:, None] & animal) | (vehicle[:, None] & vehicle)
    kinds |= (person | of_classes(objects, ("chair",)))[:, None] & of_classes(objects, ("dining table",))
    overlap = (share > 0.03) & (share < 0.75) & (objects.x_overlap > 0.25)
    larger = objects.area[None, :] > 0.7 * objects.area[:, None]
    sure = higher & overlap & larger & kinds & (ground[:, None] & ground)
    return sure, (bottom[:, None] < bottom[None, :] + 0.02) | (objects.area[:, None] < objects.area[None, :])


def in_front_of(objects: Objects) -> Tables:
    sure, maybe = behind(objects)
    person, table = of_classes(objects, (lexicon.PERSON, "chair")), of_classes(objects, ("dining table",))
    return sure.T & ~(table[:, None] & person[None, :]), maybe.T


def on(objects: Objects) -> Tables:
    """Small things on tables, animals on furniture: most of the box lies within, the lower edge does."""
    _, _, _, bottom = objects.boxes.T
    y1, y2 = objects.boxes[:, 1], objects.boxes[:, 3]
    inside = objects.intersection / objects.area[:, None]
    never = (
        lexicon.PERSON,
        *lexicon.SUPPORTS,
        *lexicon.VEHICLES,
        *lexicon.LARGE_ANIMALS,
        *lexicon.WORN,
        "tv",
    )
    thing = ~of_classes(objects, never)
    support = of_classes(objects, lexicon.SUPPORTS)
    within = (bottom[:, None] < y2 - 0.1 * objects.height) & (bottom[:, None] > y1 + 0.1 * objects.height)
    smaller = objects.area[:, None] < 0.6 * objects.area[None, :]
    nearby = objects.intersection > 0
    # What lies within a person who sits there is in hand; tables alone have people behind them.
    people = inside[:, of_classes(objects, (lexicon.PERSON,))].max(1, initial=0) > 0.5
    support = support & (~people[:, None] | of_classes(objects, ("dining table",)))
    return (inside > 0.7) & within & smaller & thing[:, None] & support, nearby


def holding(objects: Objects) -> Tables:
    """A person and what lies mostly within the box, at the height of hands, and within nobody else's."""
    person, thing = of_classes(objects, (lexicon.PERSON,)), of_classes(objects, lexicon.HELD)
    inside = objects.intersection / objects.area[None, :]
    middle = (objects.y[None, :] - objects.boxes[:, None, 1]) / objects.height[:, None]
    smaller = objects.area[None, :] < 0.35 * objects.area[:, None]
    large = of_classes(objects, ("surfboard", "teddy bear", "snowboard"))
    smaller |= large & (objects.area[None, :] < 0.8 * objects.area[:, None])
    held = (inside > 0.55) & (middle > 0.12) & (middle < 0.72) & smaller
    held |= of_classes(objects, ("umbrella",)) & under_umbrella(objects)
    return only_pair(held & person[:, None] & thing, objects), touching(objects)


def under_umbrella(objects: Objects) -> np.ndarray:
    """Whether person i stands below umbrella j and reaches it."""
    x1, y1, x2, y2 = objects.boxes.T
    beside = (objects.x[:, None] > x1) & (objects.x[:, None] < x2)
    high = (y1 < y1[:, None] + 0.1 * objects.height[:, None]) & (
        y2 > y1[:, None] + 0.05 * objects.height[:, None]
    )
    fits = (objects.width < 2 * objects.width[:, None]) & (objects.width > 0.7 * objects.width[:, None])
    return beside & high & fits & (objects.intersection > 0) & (objects.y < objects.y[:, None])


def wearing(objects: Objects) -> Tables:
    person, thing = of_classes(objects, (lexicon.PERSON,)), of_classes(objects, lexicon.WORN)
    inside = objects.intersection / objects.area[None, :]
    smaller = objects.area[None, :] < 0.35 * objects.area[:, None]
    return only_pair((inside > 0.75) & smaller & person[:, None] & thing, objects), touching(objects)


def riding(objects: Objects) -> Tables:
    """On an animal or a bike: above it, feet above its lower edge. On a board: it lies at the feet."""
    x1, y1, x2, y2 = objects.boxes.T
    person = of_classes(objects, (lexicon.PERSON,))
    mount, board = of_classes(objects, lexicon.RIDDEN), of_classes(objects, lexicon.BOARDS)
    centred = (objects.x[:, None] > x1 + 0.15 * objects.width) & (
        objects.x[:, None] < x2 - 0.15 * objects.width
    )
    higher = objects.y[:, None] < objects.y - 0.12 * objects.height
    feet = (y2[:, None] > y1 + 0.35 * objects.height) & (y2[:, None] < y2 - 0.05 * objects.height)
    inside = objects.intersection / np.minimum(objects.area[:, None], objects.area[None, :])
    size = (objects.height[:, None] > 0.5 * objects.height) & (objects.height[:, None] < 1.6 * objects.height)
    size &= objects.area[:, None] > 0.3 * objects.area  # else the bike is near and the person far behind it
    mounted = mount & centred & higher & feet & (inside > 0.3) & size
    level = (objects.y - y1[:, None]) / objects.height[:, None]
    touches = (
        (y1 < y2[:, None] + 0.01)
        & (objects.x_overlap > 0.5)
        & (objects.height < 0.5 * objects.height[:, None])
    )
    ridden = board & (level > 0.78) & (level < 1.15) & touches & (objects.width < 4 * objects.width[:, None])
    return only_pair((mounted | ridden) & person[:, None], objects), touching(objects)


def sitting_on(objects: Objects) -> Tables:
    """A person who is not slim as one who stands, whose lower part lies in a seat."""
    x1, y1, x2, y2 = objects.boxes.T
    person, seat = of_classes(objects, (lexicon.PERSON,)), of_classes(objects, lexicon.SEATS)
    slim = objects.height / (objects.width * objects.aspect)
    centred = (objects.x[:, None] > x1) & (objects.x[:, None] < x2)
    low = (y2[:, None] > objects.y - 0.1 * objects.height) & (y1[:, None] < y1 + 0.1 * objects.height)
    inside = objects.intersection / np.minimum(objects.area[:, None], objects.area[None, :])
    size = (objects.height < 1.5 * objects.height[:, None]) & (
        objects.height > 0.35 * objects.height[:, None]
    )
    large = (objects.area > 0.006) & (objects.area > 0.006)[:, None]
    sits = large & centred & low & (inside > 0.5) & size & (slim < 1.9)[:, None]
    return only_pair(sits & person[:, None] & seat, objects), touching(objects)


def having(objects: Objects) -> Tables:
    """Any of the above, for words that leave open what somebody does: "with", "who has"."""
    sure = holding(objects)[0] | wearing(objects)[0] | riding(objects)[0]
    return sure, touching(objects)


def touching(objects: Objects) -> np.ndarray:
    """Close enough that one might have to do with the other, bool (n, n)."""
    return objects.gap < 0.03


def only_pair(pairs: np.ndarray, objects: Objects) -> np.ndarray:
    """The pairs whose thing j touches no other person much: else it is anybody's guess whose it is."""
    person = of_classes(objects, (lexicon.PERSON,))
    share = objects.intersection / objects.area[None, :]
    near = person[:, None] & (share > 0.2) & (objects.height[:, None] > 0.3 * objects.height.max(initial=0))
    return pairs & ((near | pairs).sum(0) == 1)[None, :]


RULES: dict[str, Callable[[Objects], Tables]] = {
    "left of": left_of,
    "right of": right_of,
    "above": above,
    "below": below,
    "next to": next_to,
    "behind": behind,
    "in front of": in_front_of,
    "on": on,
    "holding": holding,
    "wearing": wearing,
    "riding": riding,
    "sitting on": sitting_on,
    "having": having,
}
MIRRORED = {"left of": "right of", "right of": "left of"}
INVERSE = "'s "  # before a relation: seen from the thing; "the horse that the man is riding"


def related(objects: Objects, relation: str) -> tuple[list[int], list[int]]:
    """For each anchor j the set of objects that surely, and that maybe, stand in the relation to it."""
    if relation not in objects.tables:
        name = relation.removeprefix(INVERSE)
        if possible(objects, name):
            sure, maybe = RULES[name](objects)
            same = np.eye(len(objects), dtype=bool)
            sure, maybe = sure & ~same, (sure | maybe) & ~same
            objects.tables[name] = rows_as_bits(sure.T), rows_as_bits(maybe.T)
            objects.tables[INVERSE + name] = rows_as_bits(sure), rows_as_bits(maybe)
        else:
            none = [0] * len(objects)
            objects.tables[name] = objects.tables[INVERSE + name] = none, none
    return objects.tables[relation]


NEEDED = {  # classes without one of which a relation holds of nobody
    "holding": lexicon.HELD,
    "wearing": lexicon.WORN,
    "riding": lexicon.RIDDEN + lexicon.BOARDS,
    "sitting on": lexicon.SEATS,
    "on": lexicon.SUPPORTS,
}
PEOPLES = ("holding", "wearing", "riding", "sitting on", "having")


def possible(objects: Objects, name: str) -> bool:
    """Whether the image has what the relation needs at all; it saves the work where not."""
    there = objects.of_class
    if len(objects) < 2 or (name in PEOPLES and lexicon.PERSON not in there):
        return False
    return name not in NEEDED or not there.keys().isdisjoint(NEEDED[name])
