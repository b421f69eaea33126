"""Colours measured in drawn images."""

import numpy as np
import pytest

from tests.data.phrases.drawn import COLORS
from vg_utils.data.phrases.colors import ALL, NAMES, codes_of, measure

GROUND = (120, 125, 122)


def names(bits: int) -> set[str]:
    return {name for c, name in enumerate(NAMES) if bits >> c & 1}


def painted(*patches) -> np.ndarray:
    """An image of 160x160 with rectangles (x1, y1, x2, y2, colour) in shares of its sides."""
    rgb = np.full((160, 160, 3), GROUND, dtype=np.uint8)
    for x1, y1, x2, y2, color in patches:
        rgb[int(y1 * 160) : int(y2 * 160), int(x1 * 160) : int(x2 * 160)] = color
    return codes_of(rgb)


@pytest.mark.parametrize("color", sorted(COLORS))
def test_color_of_a_thing(color):
    box = np.array([[0.3, 0.3, 0.7, 0.6]])
    pixels = painted((*box[0], COLORS[color]), (0.0, 0.9, 1.0, 1.0, COLORS["red"]))
    assert names(measure(pixels, box, [False], [True]).sure["whole"][0]) == {color}


def test_a_thing_as_its_surroundings_has_no_color():
    pixels = painted((0.0, 0.0, 1.0, 1.0, COLORS["blue"]))
    assert measure(pixels, np.array([[0.3, 0.3, 0.7, 0.6]]), [False], [True]).sure["whole"] == [0]


def test_two_colors_are_no_color_but_may_be_either():
    box = np.array([[0.2, 0.2, 0.8, 0.8]])
    pixels = painted((0.2, 0.2, 0.5, 0.8, COLORS["blue"]), (0.5, 0.2, 0.8, 0.8, COLORS["red"]))
    found = measure(pixels, box, [False], [True])
    assert found.sure["whole"] == [0]
    assert {"blue", "red"} <= names(found.maybe["whole"][0])


def test_clothes():
    box = np.array([[0.4, 0.05, 0.6, 0.9]])
    pixels = painted((0.4, 0.18, 0.6, 0.48, COLORS["red"]), (0.4, 0.48, 0.6, 0.85, COLORS["blue"]))
    found = measure(pixels, box, [True], [True])
    assert names(found.sure["top"][0]) == {"red"}
    assert names(found.sure["bottom"][0]) == {"blue"}
    assert {"red", "blue"} <= names(found.maybe["whole"][0])


def test_gray_pictures_and_small_things_have_no_color():
    gray = codes_of(np.full((160, 160, 3), 90, dtype=np.uint8))
    boxes = np.array([[0.3, 0.3, 0.7, 0.6], [0.1, 0.1, 0.12, 0.12]])
    assert measure(gray, boxes, [False, False], [True, True]).sure["whole"] == [0, 0]
    found = measure(painted((0.1, 0.1, 0.12, 0.12, COLORS["red"])), boxes, [False, False], [True, True])
    assert found.maybe["whole"][1] == ALL
