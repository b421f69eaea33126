"""The expressions of RefScenes: their meaning, checked by a second interpreter, and their words."""

import re
from random import Random

import pytest

from vg_utils.refscenes.expressions import FAMILIES, phrase
from vg_utils.refscenes.grammar import Facts, execute, fits_nothing, mirror
from vg_utils.refscenes.near_misses import exchanged, filters
from vg_utils.refscenes.sampling import HELD_OUT
from vg_utils.refscenes.scenes import make_scenes

SIZES = ("small", "medium", "large")


@pytest.fixture(scope="module")
def scenes() -> list[dict]:
    return make_scenes("train", 0, 120, size=128, seed=11, device="cpu", draw=False)[1]


def sentences(scenes: list[dict]):
    """All sentences, each with its scene and the index of its object."""
    return [
        (s, ref["object"], sentence) for s in scenes for ref in s["refs"] for sentence in ref["sentences"]
    ]


class Reader:
    """Reads programs by plain sets on the final boxes; one threshold where the grammar keeps a margin."""

    def __init__(self, scene: dict, size: int = 128):
        boxes = [thing["box_xywh"] for thing in scene["objects"]]
        self.looks = scene["objects"]
        self.x = [(x + w / 2) / size for x, _, w, _ in boxes]
        self.area = [w * h for _, _, w, h in boxes]
        self.depth, self.across = scene["facts"].depth, scene["facts"].across

    def all(self, wanted) -> set[int]:
        return {i for i, look in enumerate(self.looks) if all(look[k] == v for k, v in wanted)}

    def one(self, program) -> int:
        found = self.read(program)
        if not found:
            raise LookupError(f"nothing is {program}")
        assert len(found) == 1, (program, found)
        return found.pop()

    def finds_nothing(self, program) -> bool:
        """Whether nothing fits, or what it leans on is not there, or the row is too short."""
        try:
            return not self.read(program)
        except (LookupError, ValueError):  # ValueError: the most of none
            return True

    def far(self, side, i) -> float:
        return {"left": -self.x[i], "right": self.x[i], "front": -self.depth[i], "back": self.depth[i]}[side]

    def gap(self, i, j) -> float:
        return abs(complex(self.across[i] - self.across[j], self.depth[i] - self.depth[j]))

    def between(self, i, a, b) -> bool:
        a, b, p = (complex(self.across[k], self.depth[k]) for k in (a, b, i))
        share = (p - a) / (b - a)  # in the frame where a is 0 and b is 1
        return 0.12 < share.real < 0.88 and abs(share.imag) < 0.45

    def stands(self, relation, i, j) -> bool:
        size = SIZES.index(self.looks[i]["size"]) - SIZES.index(self.looks[j]["size"])
        return {
            "left": self.x[i] < self.x[j],
            "right": self.x[i] > self.x[j],
            "behind": self.depth[i] > self.depth[j] + 0.6,
            "front": self.depth[i] < self.depth[j] - 0.6,
            "larger": size > 0,
            "smaller": size < 0,
        }[relation]

    def read(self, program) -> set[int]:
        match program:
            case "only", wanted:
                return self.all(wanted)
            case "extreme", side, wanted:
                return {max(self.all(wanted), key=lambda i: self.far(side, i))}
            case "zone", "middle", wanted:
                return {i for i in self.all(wanted) if abs(self.x[i] - 0.5) < 0.14}
            case "zone", side, wanted:
                return {
                    i for i in self.all(wanted) if (self.x[i] < 0.45 if side == "left" else self.x[i] > 0.55)
                }
            case "order", rank, side, wanted:
                return {sorted(self.all(wanted), key=lambda i: -self.far(side, i))[rank - 1]}
            case "superlative", which, wanted:
                pick = max if which == "largest" else min
                return {pick(self.all(wanted), key=lambda i: self.area[i])}
            case "except", wanted, name, value:
                return self.all(wanted) - self.all(((name, value),))
            case "relation", relation, wanted, anchor:
                to = self.one(anchor)
                return {i for i in self.all(wanted) - {to} if self.stands(relation, i, to)}
            case "nearest", wanted, anchor:
                to = self.one(anchor)
                return {min(self.all(wanted) - {to}, key=lambda i: self.gap(i, to))}
            case "between", wanted, one, two:
                ends = self.one(one), self.one(two)
            case "between pair", wanted, pair:
                ends = tuple(self.all(pair))
                if len(ends) < 2:
                    raise LookupError(f"no two are {pair}")
                assert len(ends) == 2
        return {i for i in self.all(wanted) - set(ends) if self.between(i, *ends)}


def test_every_expression_means_exactly_its_object(scenes):
    for scene, target, sentence in sentences(scenes):
        assert execute(sentence["program"], scene["facts"]) == target
        assert Reader(scene).read(sentence["program"]) == {target}, sentence


def test_mirrored_expressions_mean_the_same_object_of_the_mirrored_scene(scenes):
    sided = 0
    for scene, target, sentence in sentences(scenes):
        swapped = mirror(sentence["program"])
        sided += swapped != sentence["program"]
        assert execute(swapped, scene["facts"].mirrored()) == target
    assert sided > 50


def absent(scenes: list[dict]):
    """All phrases that fit nothing, each with its scene."""
    return [(s, phrase) for s in scenes for phrase in s["absent"]]


def test_every_absent_phrase_fits_nothing(scenes):
    for scene, written in absent(scenes):
        assert fits_nothing(written["program"], scene["facts"])
        assert execute(written["program"], scene["facts"]) is None
        assert Reader(scene).finds_nothing(written["program"]), written


def test_mirrored_absent_phrases_fit_nothing_in_the_mirrored_scene(scenes):
    sided = 0
    for scene, written in absent(scenes):
        swapped = mirror(written["program"])
        sided += swapped != written["program"]
        assert fits_nothing(swapped, scene["facts"].mirrored())
        text = phrase(written["program"], Random(0))
        assert phrase(swapped, Random(0)) == swap_words(text)
    assert sided > 50


def test_true_and_disputable_phrases_do_not_fit_nothing(scenes):
    for scene, _, sentence in sentences(scenes):
        assert not fits_nothing(sentence["program"], scene["facts"])


def differences(one, other) -> int:
    """How many words of two programs differ."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return sum(differences(a, b) for a, b in zip(one, other, strict=True))
    return int(one != other)


def test_one_thing_is_changed():
    made_from = ("relation", "left", (("shape", "cube"),), ("only", (("color", "red"),)))
    changes = list(exchanged(made_from))
    assert [len(change) for change in changes] == [3, 3, 7]  # relations, shapes, colours
    assert all(differences(made_from, other) == 1 for change in changes for _, other in change)


def test_absent_phrases_are_made_like_the_others(scenes):
    found = absent(scenes)
    assert len(found) == 2 * len(scenes)
    assert {written["family"] for _, written in found} == set(FAMILIES)
    assert all(4 <= len(written["text"].split()) <= 16 for _, written in found)
    for scene in scenes:
        assert all(0 <= written["of"] < len(scene["objects"]) for written in scene["absent"])
        assert len({written["program"] for written in scene["absent"]}) == 2


def test_pairs_that_are_held_out_do_not_say_that_a_phrase_is_absent(scenes):
    def pairs(program):
        return [(dict(wanted).get("color"), dict(wanted).get("shape")) for wanted in filters(program)]

    for _, written in absent(scenes):
        assert HELD_OUT.isdisjoint(pairs(written["program"]))
    novel = make_scenes("novel", 0, 40, size=64, seed=11, device="cpu", draw=False)[1]
    heads = {pairs(written["program"])[0] for _, written in absent(novel)}
    assert all(None in pair or pair in HELD_OUT for pair in heads)
    assert not HELD_OUT.isdisjoint(heads)
    assert {len(scene["absent"]) for scene in novel} == {1, 2}


def swap_words(text: str) -> str:
    """The flip augmentation's swap of whole words, "left-hand" among them."""
    return re.sub(
        r"\b(left|right)(most)?\b", lambda m: {"left": "right", "right": "left"}[m[1]] + (m[2] or ""), text
    )


def test_words_of_the_mirrored_program_are_the_swapped_words(scenes):
    for _, _, sentence in sentences(scenes):
        for seed in range(3):
            text = phrase(sentence["program"], Random(seed))
            assert phrase(mirror(sentence["program"]), Random(seed)) == swap_words(text)


def test_words(scenes):
    texts = [sentence["text"] for _, _, sentence in sentences(scenes)]
    assert all(4 <= len(text.split()) <= 16 for text in texts)
    assert all(re.fullmatch(r"[a-z' -]+", text) and "  " not in text for text in texts)
    assert len(set(texts)) > 0.8 * len(texts)


def test_attributes_are_not_trivial(scenes):
    for scene, _, sentence in sentences(scenes):
        if sentence["family"] == "attribute":
            for name, value in sentence["program"][1]:
                assert sum(thing[name] == value for thing in scene["objects"]) > 1, sentence


def facts(x, depth=None, size=None, area=None) -> Facts:
    """Red cubes at the given places."""
    size = size or ["medium"] * len(x)
    looks = [{"shape": "cube", "color": "red", "material": "matte", "size": s} for s in size]
    return Facts(looks, x, depth or [0.0] * len(x), [8 * v for v in x], area or [0.1] * len(x))


CUBE = (("shape", "cube"),)


@pytest.mark.parametrize(
    ("program", "of", "expected"),
    [
        (("extreme", "left", CUBE), facts([0.1, 0.3, 0.9]), 0),
        (("extreme", "left", CUBE), facts([0.1, 0.15, 0.9]), None),  # disputable
        (("order", 2, "right", CUBE), facts([0.1, 0.5, 0.9]), 1),
        (("order", 2, "right", CUBE), facts([0.1, 0.9]), None),  # no row
        (("superlative", "largest", CUBE), facts([0.1, 0.9], size=["large", "small"], area=[0.2, 0.1]), 0),
        (
            ("superlative", "largest", CUBE),
            facts([0.1, 0.9], size=["large", "small"], area=[0.12, 0.1]),
            None,
        ),
        (("superlative", "largest", CUBE), facts([0.1, 0.9], size=["small", "large"], area=[0.2, 0.1]), None),
        (("except", CUBE, "size", "large"), facts([0.1, 0.9], size=["large", "small"]), 1),
        (("zone", "left", CUBE), facts([0.2, 0.45]), None),
        (("zone", "left", CUBE), facts([0.2, 0.75]), 0),
        (("relation", "behind", CUBE, ("extreme", "left", CUBE)), facts([0.3, 0.5], depth=[0.0, 2.0]), 1),
        (("relation", "behind", CUBE, ("extreme", "left", CUBE)), facts([0.3, 0.5], depth=[0.0, 0.5]), None),
        (("between", CUBE, ("extreme", "left", CUBE), ("extreme", "right", CUBE)), facts([0.1, 0.5, 0.9]), 1),
        (("only", CUBE), facts([0.1, 0.5]), None),
        (("only", (("color", "blue"),)), facts([0.1, 0.5]), None),
    ],
)
def test_meaning(program, of, expected):
    assert execute(program, of) == expected


RED_LEFT = ("relation", "left", CUBE, ("only", (("color", "red"),)))
LARGE = (("size", "large"),)


@pytest.mark.parametrize(
    ("program", "of", "expected"),
    [
        (("only", (("color", "blue"),)), facts([0.1, 0.5]), True),
        (("only", CUBE), facts([0.1, 0.5]), False),  # several fit
        (("extreme", "left", CUBE), facts([0.1, 0.15]), False),  # disputable
        (("extreme", "left", CUBE), facts([0.1]), False),  # an odd way to put it, but there is one
        (("zone", "left", CUBE), facts([0.45]), False),  # disputable
        (("zone", "left", CUBE), facts([0.6]), True),
        (("order", 3, "left", CUBE), facts([0.1, 0.9]), True),
        (("order", 2, "left", CUBE), facts([0.1, 0.9]), False),  # no row, but a second one
        (("only", LARGE), facts([0.1], size=["small"]), True),
        (("only", LARGE), facts([0.1], size=["medium"]), False),  # a step off, which the eye may mistake
        (("except", CUBE, "size", "small"), facts([0.1], size=["small"]), False),
        (("except", CUBE, "color", "red"), facts([0.1, 0.5]), True),
        (RED_LEFT, facts([0.5]), True),  # there is only the anchor
        (("relation", "left", CUBE, ("only", (("color", "blue"),))), facts([0.5, 0.7]), True),  # no anchor
        (RED_LEFT, facts([0.5, 0.7]), False),  # two anchors
        (("nearest", CUBE, ("only", (("color", "blue"),))), facts([0.5, 0.7]), True),
        (("relation", "left", CUBE, ("extreme", "left", CUBE)), facts([0.2, 0.5]), True),
        (("relation", "behind", CUBE, ("extreme", "left", CUBE)), facts([0.2, 0.5], depth=[0, 0.4]), False),
        (("relation", "behind", CUBE, ("extreme", "left", CUBE)), facts([0.2, 0.5], depth=[0, -0.4]), True),
        (("between pair", CUBE, LARGE), facts([0.2, 0.5, 0.8], size=["small", "large", "small"]), True),
        (("between pair", CUBE, CUBE), facts([0.2, 0.5, 0.8]), False),  # which two?
    ],
)
def test_fitting_nothing(program, of, expected):
    assert fits_nothing(program, of) == expected
