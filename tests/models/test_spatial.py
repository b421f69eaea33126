"""What the rules read off a phrase, and the factor against ReCLIP's formula written out."""

import math

import pytest
import torch

from vg_utils.models.spatial import KINDS, comparisons, head_noun_phrase, log_factor, parse_phrase


@pytest.mark.parametrize(
    ("text", "head", "relations"),
    [
        ("the dog on the left", "the dog", [("left", None)]),
        ("the leftmost blue cube", "the leftmost blue cube", [("left", None)]),
        ("the left - most person", "the left most person", [("left", None)]),
        ("the ball on the right-hand side of the picture", "the ball", [("right", None)]),
        ("a man in the top right corner", "a man", [("right", None), ("top", None)]),
        ("the bowl on the bottom shelf", "the bowl", [("bottom", None)]),
        ("the giraffe in the middle", "the giraffe", [("middle", None)]),
        ("the man in the middle of the group", "the man", [("middle", None)]),
        ("the bigger zebra", "the bigger zebra", [("largest", None)]),
        ("smallest bowl", "smallest bowl", [("smallest", None)]),
        ("the drum to the left of the red ball", "the drum", [("left", "the red ball")]),
        ("the thing smaller than the cone on the right", "the thing", [("smallest", "the cone")]),
        ("a pillow on top of a black suitcase", "a pillow", [("top", "a black suitcase")]),
        ("the left dog below the table", "the left dog", [("bottom", "the table"), ("left", None)]),
        # no relation of the thing itself
        ("a dog beside a larger one", "a dog", []),
        ("the man holding a cup in his left hand", "the man", []),
        ("the woman in a tank top", "the woman", []),
        ("the bright copyright sign", "the bright copyright sign", []),
        ("the truck right behind the car", "the truck right", []),
        ("a zebra facing the left", "a zebra", []),
        ("the second cone from the left", "the second cone", []),
        ("a middle-aged man", "a middle aged man", []),
        ("a plant in the middle of a table", "a plant", []),
        ("a suitcase with clothes on top of it", "a suitcase", []),
        # heads
        ("a black and white cat lying on a bed", "a black and white cat", []),
        ("ice cream and a spoon", "ice cream", []),
        ("there is a girl standing behind another girl", "a girl", []),
        ("a sleeping cat", "a sleeping cat", []),
        ("piece of cake being cut", "piece of cake", []),
        ("man", "man", []),
        ("standing", "standing", []),
        ("a", "a", []),
        ("?!", "?!", []),
    ],
)
def test_reading(text, head, relations):
    parsed = parse_phrase(text)
    assert parsed.head == head
    assert [tuple(relation) for relation in parsed.relations] == relations


def test_the_head_of_a_phrase_of_function_words_is_the_phrase():
    assert head_noun_phrase("in on at") == "in on at"


BOXES = torch.tensor([[0, 60, 20, 80], [30, 30, 70, 70], [80, 0, 90, 10]]).float()  # in an image of 100 x 100


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("left", [0, 1, 2]),
        ("right", [2, 1, 0]),
        ("top", [2, 1, 0]),
        ("bottom", [0, 1, 2]),
        ("largest", [1, 0, 2]),
        ("smallest", [2, 0, 1]),
        ("middle", [1, 0, 2]),
    ],
)
def test_comparisons_order_the_boxes(kind, order):
    more = comparisons(kind, BOXES, (100, 100))
    assert sorted(range(3), key=lambda i: -more[i].sum()) == order
    assert not more.diagonal().any()
    assert not (more & more.T).any()


def test_every_kind_is_compared():
    assert {kind for kind in KINDS if comparisons(kind, BOXES, (100, 100)).sum() == 3} == set(KINDS)


def test_the_factor_is_that_of_reclip_and_the_floor():
    weights = torch.tensor([0.5, 0.3, 0.2])
    factor = log_factor("left", BOXES, (100, 100), weights, 0.05)
    # The first is left of the other two, the second of the third, the third of none.
    assert factor.tolist() == pytest.approx([math.log(0.05 + 0.5), math.log(0.05 + 0.2), math.log(0.05)])


def test_a_certain_thing_is_not_overruled_by_a_wild_guess():
    for probability, winner in [((0.001, 0.998, 0.001), 1), ((0.2, 0.7, 0.1), 0)]:
        weights = torch.tensor(probability)
        posterior = weights.log() + log_factor("left", BOXES, (100, 100), weights, 0.05)
        assert posterior.argmax() == winner
