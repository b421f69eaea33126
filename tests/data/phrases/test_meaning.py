"""What must hold of every phrase, over random boxes: it means one thing, and mirrored the same thing."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from tests.data.phrases.drawn import made_and_objects, random_picture
from vg_utils.data.phrases.absent import as_all
from vg_utils.data.phrases.making import Picture, make
from vg_utils.data.phrases.meaning import OPPOSITE, execute, fits_nothing, mirror, only_one
from vg_utils.data.phrases.objects import Objects, members
from vg_utils.data.phrases.wording import say
from vg_utils.data.text import swap_left_right

SEEDS = range(250)


@pytest.fixture(scope="module")
def made():
    return [made_and_objects(random_picture(seed)) for seed in SEEDS]


def mirrored(objects: Objects) -> Objects:
    x1, y1, x2, y2 = objects.boxes.T
    boxes = np.stack([1 - x2, y1, 1 - x1, y2], 1)
    other = Objects(boxes, objects.categories, objects.aspect, people=objects.people, known=objects.known)
    other.told = objects.told
    return other


def test_every_phrase_means_exactly_its_object(made):
    families = Counter()
    for each, objects in made:
        for phrase in each.phrases:
            fit = execute(phrase.meaning, objects)
            assert members(fit.maybe) == [phrase.object], phrase
            assert fit.sure == fit.maybe
            families[phrase.family] += 1
    assert families.keys() >= {
        "name",
        "place",
        "order",
        "size",
        "depth",
        "relation",
        "interaction",
        "caption",
    }


def test_no_text_is_said_of_two_objects(made):
    for each, _ in made:
        texts = [phrase.text for phrase in each.phrases]
        assert len(texts) == len(set(texts))


def test_absent_phrases_fit_no_object_however_small(made):
    assert sum(len(each.absent) for each, _ in made) > 300
    for each, objects in made:
        for phrase in each.absent:
            assert fits_nothing(as_all(phrase.meaning), objects), phrase
        assert not {p.text for p in each.absent} & {p.text for p in each.phrases}


def test_absent_phrases_name_what_is_like_the_large_thing_there():
    """Of the image of a cat mostly animals are said to be missing, with what is true of the cat."""
    known = frozenset(
        ("cat", "giraffe", "elephant", "bus", "chair", "pizza", "tie", "book", "clock", "kite", "bed")
    )
    picture = Picture(
        1, None, (320, 240), [[20, 20, 250, 200]], ["cat"], (), ("A cat lying on a rug",) * 2, known
    )
    weights = dict.fromkeys(sorted(known), 1.0)
    absent = [phrase for seed in range(150) for phrase in make(picture, seed, weights).absent]
    animals = [p.text for p in absent if p.meaning[0][1] in ("giraffe", "elephant")]
    assert 0.4 < len(animals) / len(absent) < 0.8
    assert any("lying on a rug" in text for text in animals)


def test_of_men_alone_no_woman_is_there():
    boxes = [[10, 20, 100, 200], [200, 20, 100, 200]]
    captions = ("Two men in a room", "Two men talking")
    texts = set()
    for seed in range(40):
        picture = Picture(
            1, None, (320, 240), boxes, ["person"] * 2, (), captions, frozenset(("person", "tie"))
        )
        texts.update(phrase.text for phrase in make(picture, seed, {"tie": 1.0}).absent)
    assert any("woman" in text.split() or "lady" in text.split() for text in texts)
    assert not any("man" in text.split() or "guy" in text.split() for text in texts if "tie" not in text)


def test_meaning_holds_in_the_mirror(made):
    for each, objects in made:
        other = mirrored(objects)
        for phrase in each.phrases:
            assert only_one(mirror(phrase.meaning), other) == phrase.object, phrase
        for phrase in each.absent:
            assert fits_nothing(as_all(mirror(phrase.meaning)), other), phrase


def test_swapped_words_are_the_words_of_the_mirrored_meaning(made):
    for each, _ in made:
        for phrase in (*each.phrases, *each.absent):
            if phrase.family == "caption":
                assert not set(phrase.text.split()) & OPPOSITE.keys()
                continue
            text = say(phrase.meaning, Random(7))
            assert say(mirror(phrase.meaning), Random(7)) == swap_left_right(text)


def test_margins_leave_close_calls_unsaid():
    """Two dogs side by side, of nearly one place and size: nothing tells them apart."""
    objects = Objects(np.array([[0.40, 0.40, 0.60, 0.60], [0.43, 0.41, 0.63, 0.61]]), ["dog", "dog"])
    for part in (
        ("most", "left"),
        ("most", "largest"),
        ("most", "front"),
        ("side", "left"),
        ("rank", 2, "left"),
    ):
        assert only_one((("main", "dog"), part), objects) is None


def test_a_bare_name_means_the_large_one():
    boxes = np.array([[0.1, 0.1, 0.5, 0.9], [0.8, 0.5, 0.83, 0.6]])
    objects = Objects(boxes, ["person", "person"])
    assert only_one((("main", "person"),), objects) == 0
    assert only_one((("all", "person"),), objects) is None
    near_size = Objects(np.array([boxes[0], [0.7, 0.4, 0.85, 0.8]]), ["person", "person"])
    assert only_one((("main", "person"),), near_size) is None


def test_look_alikes_are_rivals():
    boxes = np.array([[0.1, 0.4, 0.4, 0.7], [0.6, 0.4, 0.9, 0.7]])
    assert only_one((("main", "bike"),), Objects(boxes, ["bicycle", "motorcycle"])) is None
    assert only_one((("main", "car"),), Objects(boxes, ["car", "truck"])) is None
    assert only_one((("main", "car"),), Objects(boxes, ["car", "dog"])) == 0


def test_a_box_of_many_is_never_meant_but_is_a_rival():
    boxes = np.array([[0.1, 0.1, 0.9, 0.5], *[[x, 0.2, x + 0.1, 0.4] for x in (0.2, 0.4, 0.6)]])
    objects = Objects(boxes, ["person"] * 4)
    assert objects.crowd == 1
    assert not execute((("all", "person"), ("most", "largest")), objects).sure & 1


def test_more_than_sixty_objects():
    boxes = np.array([[i / 100, 0.1, i / 100 + 0.005, 0.2] for i in range(90)] + [[0.3, 0.5, 0.6, 0.9]])
    objects = Objects(boxes, ["bottle"] * 90 + ["dog"])
    assert only_one((("main", "dog"),), objects) == 90
    assert only_one((("all", "bottle"), ("relation", "left of", (("main", "dog"),))), objects) is None


def test_unknown_filter():
    with pytest.raises(KeyError):
        execute((("main", "dog"), ("smell", "wet")), Objects(np.array([[0.1, 0.1, 0.5, 0.5]]), ["dog"]))
