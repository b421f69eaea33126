"""Phrases that fit nothing in the image: classes that are not there, true ones with one thing changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.meaning import Meaning, fits_nothing, only_one
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.told import told_of
from vg_utils.data.phrases.wording import say

EXCHANGED = {  # values that may stand for each other
    "side": (("left", "right"), ("top", "bottom")),
    "color": (("red", "blue", "green", "yellow", "white", "black", "orange", "pink", "purple"),),
}
ALIKE = 0.55  # share of absent classes that are of the kind of a large object that is there
SEEN = 0.02  # share of the image: above, an object is large enough to be taken for something else
OTHER_PEOPLE = {"man": "woman", "guy": "lady", "male": "female", "boy": "girl"}
OTHER_PEOPLE |= {other: word for word, other in OTHER_PEOPLE.items()}
COATS = ("brown", "white", "black")  # of animals
SPOKEN_COLORS = ("red", "blue", "white", "black", "green", "yellow")


def absent_phrases(
    objects: Objects,
    true: Sequence[Meaning],
    count: int,
    random: Random,
    weights: Mapping[str, float],
    mentioned: set[str],
) -> Iterator[tuple[str, str, Meaning]]:
    """Up to `count` different phrases that no object may fit: (text, family, meaning) each.

    Args:
        objects: the image's.
        true: meanings of the phrases about it, to change.
        count: how many are wanted.
        random: the only source of chance.
        weights: how often each class is drawn; only classes that the image's data set annotates.
        mentioned: words of its captions; what they name is not absent, annotated or not.
    """
    near = [("near miss", meaning) for meaning in changed(true, random)]
    missing = [name for name in weights if is_missing(name, objects, mentioned)]
    seen: set[str] = set()
    there = named(true)
    for number in range(6 * count):
        if len(seen) == count:
            return
        if near and number % 2:
            family, meaning = near.pop()
        elif missing:
            family, meaning = "absent class", about_missing(missing, weights, objects, true, random)
        elif near:
            family, meaning = near.pop()
        else:
            return
        if not fits_nothing(as_all(meaning), objects) or any(
            word in mentioned for word in heads(meaning) - there
        ):
            continue
        text = say(meaning, random, roles=False)
        if text not in seen:
            seen.add(text)
            yield text, family, meaning


def is_missing(category: str, objects: Objects, mentioned: set[str]) -> bool:
    """Whether neither the class nor what is taken for it is there or mentioned."""
    if not lexicon.confused_with(category).isdisjoint(objects.categories):
        return False
    return lexicon.mentions_of(category).isdisjoint(mentioned)


def about_missing(
    missing: Sequence[str],
    weights: Mapping[str, float],
    objects: Objects,
    true: Sequence[Meaning],
    random: Random,
) -> Meaning:
    """A phrase about a class that is not there, in the words that true phrases use.

    Often the class is of the kind of something large that is there, and has that thing's colour, place or
    doing: of the image of a brown dog lying on a bed, "the brown horse", "a giraffe lying on a bed".
    """
    seen = [i for i, area in enumerate(objects.areas) if area > SEEN and not objects.crowd >> i & 1]
    rival = random.choices(seen, [objects.areas[i] for i in seen])[0] if seen else None
    alike = [] if rival is None else [c for c in missing if c in lexicon.kind_of(objects.categories[rival])]
    if alike and random.random() < ALIKE:
        category = random.choices(alike, [weights[name] ** 0.5 for name in alike])[0]
        true = [meaning for meaning in true if only_one(meaning, objects) == rival]
    else:
        category, rival = random.choices(missing, [weights[name] for name in missing])[0], None
    word = random.choice(lexicon.names_of(category)) if random.random() < 0.4 else category
    head = ("all", word)
    if rival is not None and (told := told_of(objects, rival)) and random.random() < 0.3:
        return (head, ("told", random.choice(told)))
    if true and random.random() < 0.6:  # what a true phrase says of something else
        filters = [each for each in random.choice(true)[1:] if suits(each, category)]
        if filters:
            return (head, *filters)
    chance = random.random()
    if chance < (0.15 if rival is None else 0.25) and category in lexicon.COLORED:
        colors = COATS if category in lexicon.ANIMALS else SPOKEN_COLORS
        return (head, ("color", "whole", random.choice(colors)))
    if chance < 0.35:
        sides = ("side", "left"), ("side", "right"), ("most", "left"), ("most", "right")
        return (head, random.choice(sides))
    used = next((name for name, things in USES.items() if category in things), None)
    if chance < 0.5 and used and objects.of_class.get(lexicon.PERSON, 0):
        return (("all", lexicon.PERSON), ("relation", used, (head,)))
    return (head,)


USES = {  # what people do with things
    "holding": lexicon.HELD,
    "wearing": lexicon.WORN,
    "riding": lexicon.RIDDEN + lexicon.BOARDS,
    "sitting on": lexicon.SEATS,
}


def suits(part: tuple, category: str) -> bool:
    """Whether a filter of another noun can be said of the class."""
    kind, *values = part
    if kind == "color":
        return (values[0] == "whole" and category in lexicon.COLORED) or (
            values[0] != "whole" and category == "person"
        )
    if kind == "relation":
        return (
            values[0] in ("left of", "right of", "next to", "above", "below") and values[1][0][1] != category
        )
    return kind in ("side", "most", "pair", "rank", "inner")


def changed(true: Sequence[Meaning], random: Random) -> list[Meaning]:
    """The true meanings with one value exchanged, shuffled."""
    found = []
    for meaning in true:
        for place, (kind, *values) in enumerate(meaning):
            if kind in ("main", "all") and values[0] in OTHER_PEOPLE and meaning[-1][0] != "told":
                found.append(with_part(meaning, place, (kind, OTHER_PEOPLE[values[0]])))
            elif kind == "rank":
                found.append(with_part(meaning, place, ("rank", min(values[0] + 2, 4), values[1])))
            elif kind == "side":
                others = [
                    w for group in EXCHANGED["side"] if values[0] in group for w in group if w != values[0]
                ]
                found += [with_part(meaning, place, ("side", other)) for other in others]
            elif kind == "color":
                others = [w for w in EXCHANGED["color"][0] if w != values[1]]
                found.append(with_part(meaning, place, ("color", values[0], random.choice(others))))
            elif kind == "relation":
                for other in other_anchors(values[0], values[1], random):
                    found.append(with_part(meaning, place, ("relation", values[0], other)))
    random.shuffle(found)
    return found


def other_anchors(relation: str, anchor: Meaning, random: Random) -> list[Meaning]:
    """Anchors of other classes that could be said in the same relation."""
    if relation not in USES:
        return []
    choice = random.choice(USES[relation])
    return [] if choice in lexicon.confused_with(anchor[0][1]) else [(("all", choice),)]


def with_part(meaning: Meaning, place: int, part: tuple) -> Meaning:
    """The meaning with another part in one place."""
    return (*meaning[:place], part, *meaning[place + 1 :])


def as_all(meaning: Meaning) -> Meaning:
    """The meaning with small objects of the name counted as well: an absent phrase may not fit even them."""
    return (("all", meaning[0][1]), *meaning[1:])


def heads(meaning: Meaning) -> set[str]:
    """All nouns of a meaning."""
    found = {meaning[0][1]}
    for part in meaning[1:]:
        found.update(*(heads(value) for value in part if isinstance(value, tuple)))
    return found


def named(true: Sequence[Meaning]) -> set[str]:
    """All nouns of the true meanings."""
    return set().union(*map(heads, true)) if true else set()
