"""The families of phrases: small functions that propose meanings of one object, to be proved by `meaning`.

The rules of names, attributes and places follow Pseudo-Q (Jiang et al., CVPR 2022, section 3.2); order, depth,
relations, what people hold, ride and wear, and the proof that nothing else is meant, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.colors import NAMES, SKIN
from vg_utils.data.phrases.meaning import Meaning, execute, only_one
from vg_utils.data.phrases.objects import Objects, members
from vg_utils.data.phrases.relations import INVERSE, related

SMALL = 0.004  # share of the picture: below, nobody means it
SIDE_DIRECTIONS = ("left", "right")
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
    if abs(x - 0.5) < 0.12:
        sides += [("side", "middle")]
    if abs(y - 0.5) > 0.12 and random.random() < 0.4 and not alone:
        sides += [("side", level), ("most", level)]
    random.shuffle(sides)
    for each in sides[: 1 if alone else None]:
        yield (noun(objects, i, random), each)
    if abs(y - 0.5) > 0.15 and abs(x - 0.5) > 0.15 and random.random() < 0.5 and not alone:
        yield (noun(objects, i, random), ("corner", level, side))


def by_order(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    word = noun(objects, i, random)
    rivals = members(objects.named(word[1], word[0] == "all").maybe)
    if not 3 <= len(rivals) <= 6:
        return
    left = sum(objects.x[j] < objects.x[i] for j in rivals)
    right = len(rivals) - 1 - left
    for number, direction in ((left, "left"), (right, "right")):
        if 1 <= number <= 2:
            yield (word, ("rank", number + 1, direction))


def by_size(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    if objects.categories[i] == lexicon.PERSON:
        return
    yield (noun(objects, i, random), ("most", "largest"))
    yield (("all", some_word(objects, i, random)), ("most", "smallest"))


def by_depth(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    if objects.categories[i] in lexicon.AIRBORNE:
        return
    yield (noun(objects, i, random), ("most", "front"))
    yield (("all", some_word(objects, i, random)), ("most", "back"))


def anchors(objects: Objects, i: int, random: Random) -> list[int]:
    """Other objects to lean on, not of the same class, largest first with some chance."""
    others = [
        j
        for j in range(len(objects))
        if objects.categories[j] != objects.categories[i] and objects.areas[j] > SMALL
    ]
    others = [j for j in others if not objects.crowd >> j & 1]
    random.shuffle(others)
    return others


def by_relation(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    used = 0
    for j in anchors(objects, i, random):
        names = [name for name in SPATIAL if related(objects, name)[0][j] >> i & 1]
        anchor = (noun(objects, j, random),)
        if only_one(anchor, objects) != j:
            anchor = (
                *anchor,
                random.choice(
                    [*colors_of(objects, j), ("side", "left"), ("side", "right"), ("most", "front")]
                ),
            )
            if only_one(anchor, objects) != j:
                continue
        if names and used < 3:
            used += 1
            yield (noun(objects, i, random), ("relation", random.choice(names), anchor))
        if objects.gap[i, j] < 0.15 and random.random() < 0.5:
            yield (noun(objects, i, random), ("nearest", anchor))
    name = random.choice(("left of", "right of", "behind", "in front of", "behind", "in front of"))
    yield (noun(objects, i, random), ("other", name))


def by_interaction(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    person = objects.categories[i] == lexicon.PERSON
    for name in INTERACTIONS:
        surely = related(objects, name if person else INVERSE + name)[0]
        found = [j for j in range(len(objects)) if surely[j] >> i & 1]
        for j in random.sample(found, min(2, len(found))):
            word = ("all", some_word(objects, j, random))
            anchor = (
                (word, random.choice(colors_of(objects, j)))
                if colors_of(objects, j) and random.random() < 0.25
                else (word,)
            )
            said = "having" if name in ("holding", "wearing") and random.random() < 0.15 else name
            yield (noun(objects, i, random), ("relation", said if person else INVERSE + name, anchor))
    if objects.categories[i] in lexicon.SUPPORTS:
        surely = related(objects, INVERSE + "on")[0]
        found = [j for j in range(len(objects)) if surely[j] >> i & 1]
        for j in random.sample(found, min(1, len(found))):
            yield (
                noun(objects, i, random),
                ("relation", INVERSE + "on", (("all", some_word(objects, j, random)),)),
            )


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


def by_combination(objects: Objects, i: int, random: Random) -> Iterator[Meaning]:
    """Two filters, each of which is needed or helps: colour and place, what somebody holds and place."""
    found = colors_of(objects, i)
    places = [each[1] for each in by_place(objects, i, random)]
    others = [each[1] for each in (*by_interaction(objects, i, random), *by_relation(objects, i, random))]
    others = [each for each in others if each[0] == "relation"]
    places = [p for p in places if p[0] == "side" and p[1] not in ("top", "bottom")]
    pairs = [(c, p) for c in found for p in places]
    pairs += [(o, p) for o in others[:2] for p in places]
    pairs += [(c, o) for c in found for o in others[:2]]
    for pair in random.sample(pairs, min(4, len(pairs))):
        yield (noun(objects, i, random), *pair)


Family = Callable[[Objects, int, Random], Iterator[Meaning]]
FAMILIES: dict[str, Family] = {
    "name": by_name,
    "place": by_place,
    "order": by_order,
    "size": by_size,
    "depth": by_depth,
    "relation": by_relation,
    "interaction": by_interaction,
    "color": by_color,
    "combination": by_combination,
}
