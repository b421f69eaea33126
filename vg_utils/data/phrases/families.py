"""The families of phrases: small functions that propose meanings of one object, to be proved by `meaning`.

The rules of names, attributes and places follow Pseudo-Q (Jiang et al., CVPR 2022, section 3.2). Order,
depth, relations, what people hold, ride and wear, and the proof that nothing else is meant are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import numpy as np

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.colors import NAMES, SKIN
from vg_utils.data.phrases.meaning import Meaning, execute, only_one
from vg_utils.data.phrases.objects import Objects, members
from vg_utils.data.phrases.relations import INVERSE, related
from vg_utils.data.phrases.told import POSTURES, mentions_class, told_of

SMALL = 0.008  # share of the image: below, nobody says where something is by it
SIZED = 0.01  # likewise: below, nobody compares its size
MOST_RELATIONS, MOST_COMBINED = 6, 8  # that are looked at for an object
PLACES = ("place", "order", "depth")
RELATIVE = ("most", "rank", "inner", "pair")  # places among those left over so far
PICKS = ("place", "order", "size", "depth", "interaction", "color", "combination")  # that more is told with
MOST_TOLD = 8
INTERACTIONS = ("holding", "wearing", "riding", "sitting on")
SPATIAL = ("left of", "right of", "above", "below", "next to", "behind", "in front of", "on")


def noun(objects: Objects, i: int, random: Random) -> tuple[str, str]:
    """A noun for the object: among the large ones of its name if it is one of them, else among all."""
    word = some_word(objects, i, random)
    return ("main" if objects.named(word).sure >> i & 1 else "all"), word


def some_word(objects: Objects, i: int, random: Random) -> str:
    """A word for the object: mostly its class's own name; of people mostly the kind that captions prove."""
    category = objects.categories[i]
    kinds = [kind for kind, people in objects.people.items() if people >> i & 1]
    if kinds and random.random() < 0.85:
        return random.choice(lexicon.PEOPLE[random.choice(kinds)])
    words = lexicon.names_of(category)
    return category if len(words) == 1 or random.random() < 0.55 else random.choice(words[1:])


def by_name(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    yield (noun(objects, i, random),)
    for group in lexicon.groups_of(objects.categories[i]):
        if objects.known is None or objects.known.issuperset(lexicon.classes_of(group)[0]):
            yield (("main", group),)


def by_place(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    x, y = objects.x[i], objects.y[i]
    side, level = ("left" if x < 0.5 else "right"), ("top" if y < 0.5 else "bottom")
    word = noun(objects, i, random)
    alone = execute((word,), objects).maybe.bit_count() == 1
    if alone and random.random() < 0.5:  # nobody needs to hear where it is
        return
    sides = [("side", side), ("pair", side), ("most", side)]
    if abs(x - 0.5) < 0.12 and stands_between(objects, i, word):
        sides += [("side", "middle")]
    if abs(y - 0.5) > 0.12 and random.random() < 0.4 and not alone:
        sides += [("side", level), ("most", level)]
    random.shuffle(sides)
    for each in sides[: 1 if alone else None]:
        yield (noun(objects, i, random), each)
    if abs(y - 0.5) > 0.15 and abs(x - 0.5) > 0.15 and random.random() < 0.5 and not alone:
        yield (noun(objects, i, random), ("corner", level, side))


def stands_between(objects: Objects, i: int, word: tuple[str, str]) -> bool:
    """Whether "in the middle" can be said: nothing else has the name, or something to either side has."""
    rivals = [objects.x[j] - objects.x[i] for j in members(execute((word,), objects).maybe) if j != i]
    return not rivals or (min(rivals) < -0.1 and max(rivals) > 0.1)


def by_order(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    if objects.categories[i] in lexicon.CLUTTER:
        return
    word = noun(objects, i, random)
    rivals = members(objects.named(word[1], among=word[0]).maybe)
    if not 3 <= len(rivals) <= 6:
        return
    left = sum(objects.x[j] < objects.x[i] for j in rivals)
    right = len(rivals) - 1 - left
    for number, direction in ((left, "left"), (right, "right")):
        if 1 <= number <= 3:
            yield (word, ("rank", number + 1, direction))
    if left == right == 1:
        yield (word, ("inner",))


def by_size(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    category = objects.categories[i]
    unsized = (lexicon.PERSON, *lexicon.PLURAL_CLASSES, *lexicon.AIRBORNE, *lexicon.WORN, *lexicon.CLUTTER)
    if category in unsized or objects.areas[i] < SIZED:
        return
    yield (noun(objects, i, random), ("most", "largest"))
    if is_whole(objects, i):
        yield (("all", some_word(objects, i, random)), ("most", "smallest"))


def is_whole(objects: Objects, i: int) -> bool:
    """Whether neither the image's edge nor another object cuts the box, which then tells the size."""
    x1, y1, x2, y2 = objects.corners[i]
    shared = np.delete(objects.intersection[i], i).max(initial=0.0)
    return min(x1, y1, 1 - x2, 1 - y2) > 0.01 and shared < 0.2 * objects.areas[i]


def by_depth(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    if objects.categories[i] not in lexicon.GROUNDED or objects.categories[i] in lexicon.AIRBORNE:
        return
    if objects.areas[i] > SIZED:
        yield (noun(objects, i, random), ("most", "front"))
    yield (("all", some_word(objects, i, random)), ("most", "back"))


def by_relation(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    pairs = [(name, j) for name in SPATIAL for j in members(related(objects, INVERSE + name)[0][i])]
    if objects.categories[i] in lexicon.WORN:  # a tie is not next to anybody
        pairs = [(name, j) for name, j in pairs if name != "next to"]
        near = []
    else:
        near = [j for j, gap in enumerate(objects.gaps[i]) if gap < 0.15 and j != i]
    pairs += [("nearest", j) for j in random.sample(near, min(2, len(near)))]
    for name, j in random.sample(pairs, min(MOST_RELATIONS, len(pairs))):
        anchor = described(objects, j, random)
        alike = objects.categories[j] == objects.categories[i]
        # "The man next to the man in red", never "the boat left of the boat on the right".
        if anchor is not None and (not alike or (anchor[1:] and anchor[1][0] not in ("side", "most"))):
            part = ("nearest", anchor) if name == "nearest" else ("relation", name, anchor)
            yield (noun(objects, i, random), part)
    yield (
        noun(objects, i, random),
        ("other", random.choice(("left of", "right of", "behind", "in front of"))),
    )


def described(objects: Objects, j: int, random: Random) -> Meaning | None:
    """A short description of an object that something else leans on, None if none was found."""
    if objects.areas[j] < SMALL or objects.crowd >> j & 1:
        return None
    anchor: Meaning = (noun(objects, j, random),)
    alone = only_one(anchor, objects) == j
    if not alone or random.random() < 0.3:
        more = [*colors_of(objects, j), ("side", "left"), ("side", "right")]
        more += [("most", "front")] if objects.categories[j] in lexicon.GROUNDED else []
        if objects.categories[j] == lexicon.PERSON:
            more += [("relation", name, anchor) for name, anchor in used(objects, j, random)]
        richer = (*anchor, random.choice(more))
        if only_one(richer, objects) == j:
            return richer
    return anchor if alone else None


def used(objects: Objects, i: int, random: Random) -> Iterator[tuple[str, Meaning]]:
    """What a person holds, wears, rides and sits on; of a thing, by whom it is held and so on."""
    person = objects.categories[i] == lexicon.PERSON
    for name in INTERACTIONS if person else [INVERSE + name for name in (*INTERACTIONS, "on")]:
        found = members(related(objects, opposite(name))[0][i])
        for j in random.sample(found, min(2, len(found))):
            anchor: Meaning = (("all", some_word(objects, j, random)),)
            if random.random() < 0.25 and (colors := colors_of(objects, j)):
                anchor = (*anchor, random.choice(colors))
            yield name, anchor


def by_interaction(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    for name, anchor in used(objects, i, random):
        said = "having" if name in ("holding", "wearing") and random.random() < 0.15 else name
        yield (noun(objects, i, random), ("relation", said, anchor))


def opposite(name: str) -> str:
    """The relation seen from the other side."""
    return name.removeprefix(INVERSE) if name.startswith(INVERSE) else INVERSE + name


def colors_of(objects: Objects, i: int) -> list[tuple]:
    """The filters of colour that the object certainly passes."""
    if objects.measured is None:
        return []
    found = []
    for part in ("whole",) if objects.categories[i] != lexicon.PERSON else ("top", "any", "bottom"):
        sure = objects.measured.sure["top" if part == "any" else part][i]
        found += [
            ("color", part, name)
            for c, name in enumerate(NAMES)
            if sure >> c & 1 and not (part != "whole" and name in SKIN)
        ]
    return found


def by_color(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    found = colors_of(objects, i)
    for each in random.sample(found, min(3, len(found))):
        yield (noun(objects, i, random), each)


def combined(
    objects: Objects, i: int, random: Random, proposed: dict[str, list[Meaning]]
) -> Iterator[Meaning]:
    """Two filters of other families, sometimes three: colour and place, what somebody holds and place.

    Never two places: "the left person on the right of the bus" is nobody's way to speak.
    """
    colors = colors_of(objects, i)
    places = [
        part for family in PLACES for _, part in proposed[family] if part[1:] not in (("top",), ("bottom",))
    ]
    does = [part for _, part in proposed["interaction"]]
    stands = [part for _, part in proposed["relation"] if part[0] == "relation" and len(part[2]) == 1]
    beside = [part for part in stands if part[1] in ("next to", "behind", "in front of", "on")]
    sets = [(one, two) for one in colors for two in (*does[:2], *stands[:1])]
    sets += [(one, place) for place in places for one in (*colors, *does[:2], *beside[:1])]
    sets += [(color, one, place) for color in colors for one in does[:1] for place in places[:2]]
    wanted = MOST_COMBINED if objects.categories[i] == lexicon.PERSON else MOST_COMBINED // 2
    for parts in random.sample(sets, min(wanted, len(sets))):
        word = noun(objects, i, random)
        place = parts[-1]
        if place[0] in RELATIVE and not execute((word, place), objects).sure >> i & 1:
            continue  # the rightmost of those in white is not "the one in white on the far right"
        for one, other in (parts, (place, *parts[:-1])), ((place, *parts[:-1]), parts):
            # "The second man from the left in red" may mean the second of those in red, or the second who is
            # in red: it is said where nobody else may be meant either way.
            if only_one((word, *one), objects) == i and execute((word, *other), objects).maybe in (0, 1 << i):
                yield (word, *one)
                break


def told_too(
    objects: Objects, i: int, random: Random, proposed: dict[str, list[Meaning]]
) -> Iterator[Meaning]:
    """What picks the object, and what captions tell of it or of all of its class: "the giraffe on the right
    standing in the grass"."""
    texts = told_of(objects, i)
    if not texts:
        return
    picks = [m for family in PICKS for m in proposed[family] if 1 < len(m) < 4 and not leans(m)]
    picks = [m for m in picks if only_one(m, objects) == i]
    for meaning in random.sample(picks, min(MOST_TOLD, len(picks))):
        fitting = [text for text in texts if not any(says_again(part, text) for part in meaning[1:])]
        if fitting:
            yield (*meaning, ("told", random.choice(fitting)))


def leans(meaning: Meaning) -> bool:
    """Whether it says where something is by another thing, of which what more is told would be taken."""
    return any(part[0] == "relation" and part[1] in SPATIAL for part in meaning[1:])


def says_again(part: tuple, text: str) -> bool:
    """Whether the text tells what the filter says."""
    kind, *values = part
    if kind == "color":
        return f" {values[1]} " in text
    if kind == "relation" and values[0] in ("sitting on", "riding") and not POSTURES.isdisjoint(text.split()):
        return True
    return kind == "relation" and mentions_class(
        text, lexicon.class_of_word(values[1][0][1]) or values[1][0][1]
    )


FAMILIES: dict[str, Callable[[Objects, int, Random], Iterator[Meaning]]] = {
    "name": by_name,
    "place": by_place,
    "order": by_order,
    "size": by_size,
    "depth": by_depth,
    "relation": by_relation,
    "interaction": by_interaction,
    "color": by_color,
}


def propose(objects: Objects, i: int, random: Random) -> dict[str, list[Meaning]]:
    """For each family what might be said of the object, without doubles; not proved yet."""
    proposed = {family: list(dict.fromkeys(rule(objects, i, random))) for family, rule in FAMILIES.items()}
    proposed["combination"] = list(dict.fromkeys(combined(objects, i, random, proposed)))
    proposed["description"] = list(dict.fromkeys(told_too(objects, i, random, proposed)))
    return proposed
