"""Captions: subjects, kinds of people, and phrases of the one large object."""

import numpy as np
import pytest

from vg_utils.data.phrases.caption_words import subject, words_of
from vg_utils.data.phrases.captions import phrases
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.people import filters, prove_people

ONE = Objects(np.array([[0.1, 0.1, 0.5, 0.9]]), ["person"])


def words(*captions: str) -> list[list[str]]:
    return [words_of(caption) for caption in captions]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A young man riding a wave.", (3, "person")),
        ("A black and white dog on grass", (5, "dog")),
        ("A tennis player swings", (3, "person")),
        ("Two men playing", None),
        ("A man and a woman", None),
        ("A group of people", None),
        ("There is a dog", None),
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
    found = {(i, text) for i, text, _ in phrases(captions, objects)}
    assert (0, "a man walking on the beach with a small brown dog") in found
    assert (1, "a small brown dog") in found


def test_disputed_kinds_are_not_repeated():
    captions = words("A man walking", "A woman walking in a park")
    ONE.cache.clear()
    assert list(phrases(captions, ONE)) == []
