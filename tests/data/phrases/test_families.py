"""Families on boxes that were made for them."""

import numpy as np
import pytest

from vg_utils.data.phrases.meaning import only_one
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


def test_nearest_and_between_sizes():
    boxes = np.array([[0.05, 0.4, 0.15, 0.6], [0.2, 0.4, 0.35, 0.6], [0.7, 0.3, 0.95, 0.7]])
    objects = Objects(boxes, ["dog", "chair", "dog"])
    assert only_one((("main", "dog"), ("nearest", (("main", "chair"),))), objects) == 0
    assert only_one((("main", "dog"), ("most", "largest")), objects) == 2
