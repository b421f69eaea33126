"""An image's annotated objects, and the sets of objects that words pick out: bits of whole numbers.

Object i is in a set when bit i is set. A `Fit` is two such sets: who fits beyond doubt, and who may fit.
Every margin of the rules is the gap between the two; a phrase is said of the only object that may fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.colors import NAMES, Measured

MAIN_RATIO = 15  # an object with less than 1/15 of the largest one's area is not meant by a bare name
SURELY_MAIN_RATIO = 6
CHIEF_RATIO, CHIEF_TOGETHER = 0.1, 0.2  # of the largest one's area: each other one and all others at most


class Fit(NamedTuple):
    """Two sets of objects: those that fit for certain, and all that may fit, these among them."""

    sure: int
    maybe: int


NOTHING = Fit(0, 0)


@dataclass
class Objects:
    """The objects of one image.

    Attributes:
        boxes: float64 (n, 4) corners in shares of the image's sides, in [0, 1].
        categories: n class names, as `lexicon.canonical` gives them.
        aspect: width of the image by its height.
        crowd: set of the boxes that hold many of a class; they are rivals, never meant.
        measured: colours, or None.
        people: kind of person ("man", "woman" ...) -> set of the people who are of it, as captions prove.
        known: the classes that the data set annotates; None for all.
        told: what captions say of objects, to follow a noun ("standing in the grass") -> whom it is true of.
    """

    boxes: np.ndarray
    categories: Sequence[str]
    aspect: float = 1.0
    crowd: int = 0
    measured: Measured | None = None
    people: dict[str, int] = field(default_factory=dict)
    known: frozenset[str] | None = None
    told: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = self.boxes.T
        self.x, self.y = (x1 + x2) / 2, (y1 + y2) / 2
        self.width, self.height = x2 - x1, y2 - y1
        self.area = self.width * self.height
        self.areas: list[float] = self.area.tolist()
        self.corners: list[list[float]] = self.boxes.tolist()
        self.crowd |= as_bits(self._holds_many())
        self.of_class: dict[str, int] = {}
        for i, category in enumerate(self.categories):
            self.of_class[category] = self.of_class.get(category, 0) | 1 << i
        self.cache: dict[tuple, Fit] = {}
        self.tables: dict[str, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def intersection(self) -> np.ndarray:
        """Area shared by each pair of boxes, (n, n), in shares of the image."""
        low = np.maximum(self.boxes[:, None, :2], self.boxes[None, :, :2])
        high = np.minimum(self.boxes[:, None, 2:], self.boxes[None, :, 2:])
        return np.clip(high - low, 0, None).prod(2)

    @cached_property
    def x_overlap(self) -> np.ndarray:
        """Shared width of each pair as a share of the narrower one's, (n, n); below 0 for a gap."""
        low = np.maximum(self.boxes[:, None, 0], self.boxes[None, :, 0])
        high = np.minimum(self.boxes[:, None, 2], self.boxes[None, :, 2])
        return (high - low) / np.minimum(self.width[:, None], self.width[None, :])

    @cached_property
    def y_overlap(self) -> np.ndarray:
        """The same for heights."""
        low = np.maximum(self.boxes[:, None, 1], self.boxes[None, :, 1])
        high = np.minimum(self.boxes[:, None, 3], self.boxes[None, :, 3])
        return (high - low) / np.minimum(self.height[:, None], self.height[None, :])

    @cached_property
    def gap(self) -> np.ndarray:
        """Distance of each pair of boxes, (n, n), in shares of the image's width; 0 where they touch."""
        low = np.maximum(self.boxes[:, None, :2], self.boxes[None, :, :2])
        high = np.minimum(self.boxes[:, None, 2:], self.boxes[None, :, 2:])
        apart = np.clip(low - high, 0, None)
        return np.hypot(apart[..., 0], apart[..., 1] / self.aspect)

    @cached_property
    def gaps(self) -> list[list[float]]:
        """`gap` as lists."""
        return self.gap.tolist()

    def _holds_many(self) -> np.ndarray:
        """Boxes of many, marked or not: around three smaller ones, or what three people carry."""
        same = np.array([[a == b for b in self.categories] for a in self.categories])
        np.fill_diagonal(same, False)
        inside = self.intersection > 0.7 * self.area[None, :]
        smaller = self.area[None, :] < 0.5 * self.area[:, None]
        person = np.array([category == lexicon.PERSON for category in self.categories])
        carried = np.array([category in lexicon.HELD + lexicon.WORN for category in self.categories])
        people = (person & (self.intersection > 0.25 * self.area[None, :])).sum(1)
        return ((same & inside & smaller).sum(1) >= 3) | (carried & (people >= 3) & (self.area > 0.02))

    def named(self, word: str, among: str = "main") -> Fit:
        """The objects that a noun may mean, see `_named`."""
        key = (among, word)
        found = self.cache.get(key)
        if found is None:
            found = self.cache[key] = self._named(word, among)
        return found

    def _named(self, word: str, among: str) -> Fit:
        """The objects that a noun may mean.

        Args:
            word: a noun of the lexicon, or a class name.
            among: "all"; "main" for the large ones: those below 1/15 of the largest one's area are left out,
                as a person does who says "the man" in front of a crowd; "chief" for the largest one where it
                dwarfs the others, each and all together: a caption speaks of what is large.
        """
        certain, possible = lexicon.classes_of(word)
        sure = maybe = 0
        for category in possible:
            own = self.of_class.get(category, 0)
            maybe |= own
            sure |= own if category in certain else 0
        if word in lexicon.KINDS_OF_WORD:
            certainly, perhaps = lexicon.KINDS_OF_WORD[word]
            sure = union(self.people.get(kind, 0) for kind in certainly)
            allowed = {*certainly, *perhaps}
            maybe &= ~union(people for kind, people in self.people.items() if kind not in allowed)
        if among == "chief":
            return self._dwarfing(sure & ~self.crowd, maybe)
        if among == "main" and maybe:
            largest = max((self.areas[i] for i in members(sure & ~self.crowd)), default=0.0)
            for i in members(maybe):
                area = self.areas[i]
                if self.crowd >> i & 1:  # what counts is the size of one of the many
                    area = min(area, 0.4 * float(self.height[i]) ** 2)
                if area * MAIN_RATIO < largest:
                    maybe &= ~(1 << i)
                elif area * SURELY_MAIN_RATIO < largest:
                    sure &= ~(1 << i)
        return Fit(sure & maybe & ~self.crowd, maybe)

    def _dwarfing(self, sure: int, maybe: int) -> Fit:
        """The largest of `sure` alone, if all others of `maybe` are far smaller."""
        largest = max(members(sure), key=self.areas.__getitem__, default=None)
        if largest is None:
            return Fit(0, maybe)
        others = [self.areas[i] / self.areas[largest] for i in members(maybe) if i != largest]
        if max(others, default=0.0) > CHIEF_RATIO or sum(others) > CHIEF_TOGETHER:
            return Fit(0, maybe)
        return Fit(1 << largest, 1 << largest)

    def colored(self, part: str, color: str) -> Fit:
        """The objects of a colour; `part` is "whole", "top", "bottom", or "any" for what somebody wears."""
        everything = (1 << len(self)) - 1
        if self.measured is None:
            return Fit(0, everything)
        c = NAMES.index(color)
        where = "top" if part == "any" else part
        sure = sum(1 << i for i, found in enumerate(self.measured.sure[where]) if found >> c & 1)
        maybe = sum(1 << i for i, found in enumerate(self.measured.maybe[where]) if found >> c & 1)
        if part != "whole":  # a rival may wear it elsewhere
            maybe |= sum(1 << i for i, found in enumerate(self.measured.maybe["whole"]) if found >> c & 1)
        return Fit(sure, maybe | sure)


def members(bits: int) -> list[int]:
    """The objects of a set, in order.

    >>> members(0b1010)
    [1, 3]
    """
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return found


def union(sets) -> int:
    """All objects of the sets."""
    result = 0
    for each in sets:
        result |= each
    return result


def as_bits(flags: np.ndarray) -> int:
    """bool (n,) as a set."""
    return rows_as_bits(flags[None])[0]


def rows_as_bits(flags: np.ndarray) -> list[int]:
    """bool (m, n) as m sets."""
    if flags.shape[1] < 63:  # fits a machine word
        return (flags @ (1 << np.arange(flags.shape[1]))).tolist()
    packed = np.packbits(flags, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]
