"""Boxes drawn on the image itself."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from vg_utils.data.images import IMAGE_ENDINGS
from vg_utils.figures.annotate import COLORS, _place, annotate, save_image
from vg_utils.models.prediction import Prediction


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def has_color(image: Image.Image, color: str) -> bool:
    return bool((np.asarray(image) == ImageColor.getrgb(color)).all(2).any())


def test_the_image_keeps_its_size_and_each_phrase_has_its_colour():
    image = grey(640, 480)
    found = [
        Prediction("one", (50.0, 60.0, 200.0, 220.0), 0.9, 0.9),
        Prediction("two", (300.0, 100.0, 500.0, 300.0), 0.8, 0.1),
        Prediction("one", (400.0, 350.0, 600.0, 450.0), 0.2, 0.9, rank=1),
    ]
    drawn = annotate(image, found)
    assert drawn.size == image.size
    assert [has_color(drawn, color) for color in COLORS[:3]] == [True, True, False]
    assert not has_color(image, COLORS[0])
    assert drawn.getpixel((50, 140)) == ImageColor.getrgb(COLORS[0])  # the line is where the box is
    assert drawn.getpixel((600, 400)) == ImageColor.getrgb(COLORS[0])
    judged = annotate(image, found, threshold=0.5)
    assert [has_color(judged, color) for color in COLORS[:2]] == [True, False]


@pytest.mark.parametrize(
    "box", [(50, 60, 150, 160), (0, 0, 100, 100), (300, 200, 399, 299), (0, 50, 399, 250)]
)
def test_a_label_does_not_cover_what_it_names(box):
    """The pixels inside the line are the image's wherever there is room for the label outside."""
    inside = annotate(grey(400, 300), [Prediction("the thing", tuple(map(float, box)), 0.5)]).crop(
        (box[0] + 5, box[1] + 5, box[2] - 5, box[3] - 5)
    )
    assert (np.asarray(inside) == 90).all()


def test_labels_of_the_same_box_stand_beside_each_other():
    box, size = (100.0, 100.0, 200.0, 200.0), (80, 20)
    placed = []
    for _ in range(6):
        placed.append(_place(box, size, (400, 300), placed))
    for i, one in enumerate(placed):
        assert 0 <= one[0] < one[2] < 400
        assert 0 <= one[1] < one[3] < 300
        assert all(one[2] <= o[0] or o[2] <= one[0] or one[3] <= o[1] or o[3] <= one[1] for o in placed[:i])


@pytest.mark.parametrize("size", [(1, 1), (900, 3), (3, 900), (4000, 30)])
def test_images_and_phrases_of_any_size(size):
    width, height = size
    phrases = ["the $5 bill", "左边的红色杯子 and 😀", "a word " * 50, ""]
    found = [Prediction(p, (0.0, 0.0, float(width), float(height)), 0.5) for p in phrases]
    assert annotate(grey(width, height), found).size == size


@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_files_hold_every_colour_and_are_written_whole(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / f"drawn{ending}"
    save_image(Image.fromarray(pixels), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    read = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(read, axis=0)) > 10_000  # a palette has 256
