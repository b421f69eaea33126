"""Captions: subjects, kinds of people, and phrases of the one large object."""

from random import Random

import numpy as np
import pytest

from vg_utils.data.phrases.caption_words import subject, words_of
from vg_utils.data.phrases.captions import phrases
from vg_utils.data.phrases.meaning import only_one
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.people import filters, prove_people
from vg_utils.data.phrases.told import tell

ONE = Objects(np.array([[0.1, 0.1, 0.5, 0.9]]), ["person"])


def words(*captions: str) -> list[list[str]]:
    return [words_of(caption) for caption in captions]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A young man riding a wave.", (3, "person")),
        ("A black and white dog on grass", (5, "dog")),
        ("A tennis player swings", (3, "person")),
        ("Young man riding a wave.", (2, "person")),
        ("Men riding waves.", None),
        ("Two men playing", None),
        ("A man and a woman", None),
        ("A group of people", None),
        ("There is a dog", (2, "dog")),
        ("There is nobody", None),
    ],
)
def test_subject(caption, expected):
    assert subject(words_of(caption), {"person", "dog"}) == expected


@pytest.mark.parametrize(
    ("captions", "kind"),
    [
        (("A man on a bench", "A guy sits", "A person"), {"man": 1}),
        (("A woman on a bench", "A lady sits"), {"woman": 1}),
        (("A man on a bench", "A woman sits", "a man"), {}),
        (("A man on a bench",), {}),
        (("A boy on a bench", "A little boy"), {"boy": 1}),
        (("A man on a bench", "A boy sits", "a guy"), {"male": 1}),
        (("Two men", "men at work", "A man"), {}),
    ],
)
def test_kind_of_one_person(captions, kind):
    assert prove_people(words(*captions), ONE) == kind


def test_kind_of_one_of_several_by_what_captions_say_of_it():
    boxes = np.array([[0.1, 0.1, 0.3, 0.9], [0.6, 0.1, 0.8, 0.9], [0.2, 0.4, 0.28, 0.5]])
    objects = Objects(boxes, ["person", "person", "tennis racket"], aspect=1.5)
    said = words("A woman holding a tennis racket", "A woman with a racket next to someone")
    assert prove_people(said, objects) == {"woman": 1}


def test_three_captions_mean_the_one_who_is_far_larger():
    boxes = np.array([[0.1, 0.1, 0.5, 0.9], [0.7, 0.3, 0.85, 0.7]])
    said = words("A man on a bench", "A man sits near others", "Man in a suit")
    assert prove_people(said, Objects(boxes, ["person"] * 2)) == {"man": 1}
    assert prove_people([*said, *words("A woman near a man")], Objects(boxes, ["person"] * 2)) == {}
    boxes[1] = [0.6, 0.1, 0.9, 0.9]
    assert prove_people(said, Objects(boxes, ["person"] * 2)) == {}


def test_filters():
    assert filters(words_of("in a red shirt holding a tennis racket")) == [
        ("color", "any", "red"),
        ("relation", "holding", (("all", "tennis racket"),)),
    ]


def test_phrases_about_the_only_large_object():
    objects = Objects(np.array([[0.1, 0.1, 0.5, 0.9], [0.6, 0.5, 0.9, 0.9]]), ["person", "dog"])
    captions = words(
        "A man is walking on the beach with a small brown dog", "A man with a dog", "A guy outside"
    )
    objects.people = prove_people(captions, objects)
    objects.cache.clear()
    found = {(i, text) for i, text, _ in phrases(captions, objects, Random(0))}
    assert (0, "a man walking on the beach with a small brown dog") in found
    assert (1, "a small brown dog") in found


def test_disputed_kinds_are_not_repeated():
    captions = words("A man walking", "A woman walking in a park")
    ONE.cache.clear()
    assert list(phrases(captions, ONE, Random(0))) == []


def said_of(captions: list[list[str]], objects: Objects) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for i, text, _ in phrases(captions, objects, Random(0)):
        found.setdefault(text, set()).add(i)
    return found


def test_a_caption_speaks_of_the_one_that_dwarfs_the_others():
    boxes = np.array([[0.1, 0.1, 0.6, 0.9], [0.7, 0.5, 0.85, 0.7], [0.88, 0.5, 0.98, 0.7]])
    captions = words("A bus parked on a street")
    assert said_of(captions, Objects(boxes, ["bus"] * 3)) == {"a bus parked on a street": {0}}
    boxes[1] = [0.65, 0.2, 0.95, 0.8]
    assert said_of(captions, Objects(boxes, ["bus"] * 3)) == {}


def test_things_inside_captions():
    boxes = np.array([[0.1, 0.1, 0.5, 0.9], [0.6, 0.5, 0.9, 0.8], [0.6, 0.1, 0.9, 0.3]])
    objects = Objects(boxes, ["cat", "laptop", "horse"])
    found = said_of(words("A cat looking at a laptop on a desk", "A cat near a horse in a hat"), objects)
    assert found["a laptop on a desk"] == {1}
    assert "a horse in a hat" not in found


def test_what_two_captions_tell_of_one_is_joined():
    captions = words("A man in a red shirt", "A player holding a racket", "A man is sitting on a bench")
    ONE.cache.clear()
    ONE.people, ONE.told = {"man": 1}, {}
    ONE.told = tell(captions, ONE)
    found = said_of(captions, ONE)
    assert "a man in a red shirt holding a racket" in found
    assert not any("racket" in text and text.count("racket") > 1 for text in found)


def test_what_is_true_of_all_is_told_of_each():
    two = Objects(np.array([[0.1, 0.1, 0.4, 0.9], [0.6, 0.1, 0.9, 0.9]]), ["giraffe"] * 2)
    told = tell(words("Two giraffes are standing in the grass", "Two giraffes stand next to each other"), two)
    assert told == {"standing in the grass": 0b11}
    two.told = told
    meaning = (("main", "giraffe"), ("pair", "left"), ("told", "standing in the grass"))
    assert only_one(meaning, two) == 0
    assert only_one((meaning[0], meaning[2]), two) is None
    for caption in (
        "Three giraffes standing in the grass",
        "Two giraffes walking with birds",
    ):
        assert tell(words(caption), two) == {}


def test_what_is_told_ends_before_another_clause():
    objects = Objects(np.array([[0.1, 0.1, 0.5, 0.9]]), ["dog"])
    said = words("A dog lying on a bed while a cat watches", "A dog in a red hat is on a couch")
    assert tell(said, objects).keys() == {"lying on a bed", "in a red hat"}


def test_of_a_man_and_a_woman_the_other_is_told_by_one():
    boxes = np.array([[0.1, 0.1, 0.3, 0.9], [0.6, 0.1, 0.8, 0.9], [0.2, 0.4, 0.28, 0.5]])
    objects = Objects(boxes, ["person", "person", "tennis racket"], aspect=1.5)
    said = words("A woman holding a tennis racket next to a man", "A man and a woman holding a racket")
    assert prove_people(said, objects) == {"woman": 1, "man": 2}
    assert prove_people(words("A man and a woman", "A man near a woman"), objects) == {}
