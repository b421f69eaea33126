"""Two images in one: where its objects lie, what tells them apart, what becomes of it on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.phrases.drawn import random_picture, write_set
from vg_utils.data import load_examples
from vg_utils.data.examples import DataError
from vg_utils.data.phrases import make_phrases
from vg_utils.data.phrases.caption_words import words_of
from vg_utils.data.phrases.collages import Collage, make_collage, tells_apart, together
from vg_utils.data.phrases.making import look_at
from vg_utils.data.phrases.meaning import fits_nothing, only_one
from vg_utils.data.phrases.objects import Objects


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    source = write_set(tmp_path_factory.mktemp("source") / "set", pictures=40)
    root = tmp_path_factory.mktemp("out") / "phrases"
    make_phrases(**source, root=root, collages=12, processes=1, progress=False)
    return source, root


def collage_of(one: int, other: int, below: bool) -> Collage:
    return Collage(999, (random_picture(one), random_picture(other)), below)


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_every_phrase_is_proved_on_the_boxes_of_both(seed):
    collage = collage_of(seed, seed + 1, below=seed % 4 == 0)
    halves = [look_at(part) for part in collage.parts]
    objects = together(collage, halves)
    found = make_collage(collage, 0, {"cat": 1.0, "dog": 1.0, "bus": 1.0})
    for phrase in found.phrases:
        if phrase.family != "caption":
            assert only_one(phrase.meaning, objects) == phrase.object, phrase.text
    assert all(fits_nothing(phrase.meaning, objects) for phrase in found.absent)
    assert len({phrase.text for phrase in found.phrases}) == len(found.phrases)


@pytest.mark.parametrize("below", [True, False])
def test_objects_lie_in_their_part_and_keep_their_shape(below):
    collage = collage_of(3, 8, below)
    boxes = np.array(collage.boxes_xywh)
    split = len(collage.parts[0].categories)
    axis, (x, y) = int(below), collage.corners_xy[1]
    assert (boxes[:split, axis] + boxes[:split, axis + 2] <= (x, y)[axis] + 1e-6).all()
    assert (boxes[split:, axis] >= (x, y)[axis] - 1e-6).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array(collage.size_wh) + 1).all()
    shapes = np.array([b for part in collage.parts for b in part.boxes_xywh])
    np.testing.assert_allclose(boxes[:, 2] / boxes[:, 3], shapes[:, 2] / shapes[:, 3], rtol=0.02)


def objects_of(*categories: str, known=None) -> Objects:
    boxes = np.tile([0.1, 0.1, 0.9, 0.9], (len(categories), 1))
    return Objects(boxes, categories, known=known)


@pytest.mark.parametrize(
    ("text", "category", "others", "captions", "expected"),
    [
        ("a man on a beach", "person", objects_of("dog"), ["a dog in the grass"], True),
        ("a man on a beach", "person", objects_of("person"), ["a man in the snow"], True),
        ("a man on a beach", "person", objects_of("person"), ["a woman at the beach"], False),
        ("a man on a beach", "person", objects_of("person"), [], False),  # nobody says what that one does
        (
            "a man in a red shirt",
            "person",
            objects_of("person"),
            ["a boy in the snow"],
            False,
        ),  # may wear one
        ("a man riding a horse", "person", objects_of("person", "horse"), ["a man in the snow"], False),
        (
            "a cat on a beach",
            "cat",
            objects_of("dog", known=frozenset(("dog",))),
            [],
            False,
        ),  # not looked for
        ("a cat on a beach", "cat", objects_of("dog"), ["two cats watch a dog"], False),
    ],
)
def test_a_caption_is_kept_where_it_tells_them_apart(text, category, others, captions, expected):
    assert tells_apart(text, category, others, [words_of(caption) for caption in captions]) is expected


def test_collages_join_images_of_train_only(made):
    _, root = made
    instances = json.loads((root / "annotations" / "instances.json").read_text())
    of_split = {s: {e.image_id for e in load_examples(root, s)} for s in ("train", "val", "test")}
    collages = [record for record in instances["images"] if "collage_of" in record]
    assert 6 <= len(collages) <= 12
    assert {record["id"] for record in collages} <= of_split["train"]
    assert {i for record in collages for i in record["collage_of"]} <= of_split["train"]
    for record in collages:
        with Image.open(root / "images" / record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])


def test_colours_are_where_the_phrases_say(made):
    _, root = made
    seen = []
    for example in load_examples(root, "train"):
        if not example.image.name.startswith("collage"):
            continue
        with Image.open(example.image) as image:
            for expression in example.expressions:
                if " red" in expression.text:
                    x1, y1, x2, y2 = expression.box_xyxy
                    seen.append(image.getpixel((round(x1 + x2) // 2, round(y1 + y2) // 2)))
    assert seen
    assert all(red > green + 60 for red, green, _ in seen)


def test_the_same_whatever_the_number_of_processes_and_images_as_without(made, tmp_path):
    source, root = made
    make_phrases(**source, root=tmp_path / "two", collages=12, processes=2, progress=False)
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        assert (tmp_path / "two" / file.relative_to(root)).read_bytes() == file.read_bytes()
    make_phrases(**source, root=tmp_path / "none", processes=1, progress=False)
    for split in ("val", "test"):
        with_some, without = (load_examples(folder, split) for folder in (root, tmp_path / "none"))
        assert [[x.text for x in e.expressions] for e in with_some] == [
            [x.text for x in e.expressions] for e in without
        ]


def test_a_negative_number_is_refused(made, tmp_path):
    with pytest.raises(DataError, match="collages: expected"):
        make_phrases(**made[0], root=tmp_path / "out", collages=-1, processes=1, progress=False)
    assert not (tmp_path / "out").exists()
