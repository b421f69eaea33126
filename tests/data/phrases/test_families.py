"""Families on boxes that were made for them."""

from random import Random

import numpy as np
import pytest

from vg_utils.data.phrases.colors import NAMES, Measured
from vg_utils.data.phrases.families import propose
from vg_utils.data.phrases.meaning import fits_nothing, only_one
from vg_utils.data.phrases.objects import Objects

PERSON, OTHER = [0.1, 0.1, 0.3, 0.9], [0.7, 0.1, 0.9, 0.9]


def two_people(thing: str, box: list[float]) -> Objects:
    return Objects(np.array([PERSON, OTHER, box]), ["person", "person", thing], aspect=1.5)


@pytest.mark.parametrize(
    ("relation", "thing", "box"),
    [
        ("holding", "tennis racket", [0.2, 0.4, 0.29, 0.5]),
        ("wearing", "tie", [0.18, 0.25, 0.22, 0.4]),
        ("riding", "skateboard", [0.12, 0.85, 0.28, 0.92]),
        ("having", "tennis racket", [0.2, 0.4, 0.29, 0.5]),
    ],
)
def test_who_has_the_thing(relation, thing, box):
    objects = two_people(thing, box)
    assert only_one((("main", "person"), ("relation", relation, (("all", thing),))), objects) == 0
    assert only_one((("all", thing), ("relation", f"'s {relation}", (("all", "person"),))), objects) == 2


def test_riding_a_horse():
    boxes = np.array([[0.3, 0.1, 0.5, 0.6], [0.2, 0.3, 0.6, 0.9], OTHER])
    objects = Objects(boxes, ["person", "horse", "person"], aspect=1.5)
    assert only_one((("main", "person"), ("relation", "riding", (("all", "horse"),))), objects) == 0


def test_order_and_place():
    objects = Objects(np.array([[x, 0.3, x + 0.15, 0.6] for x in (0.05, 0.3, 0.55, 0.8)]), ["zebra"] * 4)
    noun = ("main", "zebra")
    assert only_one((noun, ("most", "left")), objects) == 0
    assert only_one((noun, ("rank", 2, "left")), objects) == 1
    assert only_one((noun, ("rank", 2, "right")), objects) == 2
    assert only_one((noun, ("side", "left")), objects) is None


def test_the_middle_one_of_three():
    def of(count: int) -> Objects:
        return Objects(np.array([[0.3 * k, 0.3, 0.3 * k + 0.2, 0.6] for k in range(count)]), ["dog"] * count)

    assert only_one((("main", "dog"), ("inner",)), of(3)) == 1
    assert only_one((("main", "dog"), ("inner",)), of(2)) is None
    assert fits_nothing((("all", "dog"), ("rank", 3, "left")), of(2))
    assert not fits_nothing((("all", "dog"), ("rank", 3, "left")), of(3))


def test_who_stands_next_to_somebody_of_the_same_kind():
    boxes = np.array(
        [[0.1, 0.1, 0.3, 0.9], [0.31, 0.1, 0.5, 0.9], [0.75, 0.1, 0.95, 0.9], [0.8, 0.4, 0.85, 0.5]]
    )
    objects = Objects(boxes, ["person", "person", "person", "tennis racket"], aspect=1.5)
    with_racket = (("main", "person"), ("relation", "holding", (("all", "tennis racket"),)))
    assert only_one((("main", "person"), ("nearest", with_racket)), objects) is None
    boxes[3] = [0.15, 0.4, 0.2, 0.5]
    objects = Objects(boxes, objects.categories, aspect=1.5)
    assert only_one((("main", "person"), ("relation", "next to", with_racket)), objects) == 1


def combinations(objects: Objects, i: int) -> set:
    every = [m for seed in range(20) for m in propose(objects, i, Random(seed))["combination"]]
    return {meaning[1:] for meaning in every}


def test_two_filters_mean_the_same_one_in_either_order():
    """ "The second red car from the left": of those in red, or of all, and it is red."""
    objects = Objects(np.array([[x, 0.2, x + 0.15, 0.8] for x in (0.05, 0.3, 0.55, 0.8)]), ["car"] * 4)
    second, color = ("rank", 2, "left"), ("color", "whole", "red")
    both = {(second, color), (color, second)}
    red = 1 << NAMES.index("red")
    for colors, said in (([0, red, red, red], False), ([0, red, 0, 0], True)):
        objects.measured = Measured({"whole": colors}, {"whole": colors})
        objects.cache.clear()
        assert only_one((("main", "car"), second, color), objects) == 1
        assert bool(both & combinations(objects, 1)) is said


def test_nearest_and_between_sizes():
    boxes = np.array([[0.05, 0.4, 0.15, 0.6], [0.2, 0.4, 0.35, 0.6], [0.7, 0.3, 0.95, 0.7]])
    objects = Objects(boxes, ["dog", "chair", "dog"])
    assert only_one((("main", "dog"), ("nearest", (("main", "chair"),))), objects) == 0
    assert only_one((("main", "dog"), ("most", "largest")), objects) == 2
