"""Meanings put into words in many ways: with a determiner or none, before the noun or after it."""

from __future__ import annotations

from random import Random

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.meaning import Meaning
from vg_utils.data.phrases.relations import INVERSE
from vg_utils.data.phrases.ways import (
    COLOR_WORDS,
    INNER,
    INVERSES,
    LEVELS,
    MOST,
    NEAREST,
    ON_SKIS,
    ORDINALS,
    RELATIONS,
    SIDES,
    WORN,
)


def say(
    meaning: Meaning, random: Random, determiner: str | None = None, inner: bool = False, roles: bool = True
) -> str:
    """A meaning in words.

    Args:
        meaning: see `meaning`.
        random: the only source of chance.
        determiner: "the", "a" or "" where the caller has to decide; None draws one that suits.
        roles: whether "skier" may stand for a person on skis.
        inner: the phrase says where another thing is; what hangs on its noun is then kept short.
    """
    (_, word), *filters = meaning
    person = is_person(word)
    if person and not inner and (words := telegram(word, filters, random)):
        return with_determiner(random.choice(("", "", "the")), words)
    before, after, hangs, definite = [], [], [], False
    for kind, *values in filters:
        pre, post = WAYS[kind](values, word, random)
        definite |= kind in ("most", "rank", "inner", "pair", "nearest", "other")
        if kind == "rank" and pre:  # "the second person from the left"
            before.append(pre)
            after.append(post)
            hangs.append(0)
            continue
        # A noun carries two words before it at most: "the large left red car" is nobody's way to speak.
        if pre and (not post or (len(before) < 1 and random.random() < 0.5)):
            before.append(pre)
        else:
            after.append(post)
            hangs.append({"relation": 1, "told": 2}.get(kind, 0))
    # What leans on another thing comes last, or its place would be taken for that thing's.
    after = [post for _, post in sorted(zip(hangs, after, strict=True), key=lambda pair: pair[0])]
    join_doings(after, random)
    if kind_is(filters, "color") and len(filters) > 1:
        before.sort(key=lambda word: word in COLOR_WORDS)
    if (
        after
        and not inner
        and random.random() < 0.2
        and not after[0].startswith(("who", "that", "which", *NO_LINK))
    ):
        after[0] = (
            random.choice(("who is ", "that is ")) if person else random.choice(("that is ", "which is "))
        ) + after[0]
    role = role_of(filters[0], random) if filters and roles else None
    if role and len(filters) == 1 and random.random() < 0.35:
        after, word = [], role
    words = " ".join([*before, word, *after])
    if before and before[0] not in COLOR_WORDS and determiner is None:
        definite = True
    if determiner is None:
        determiner = random.choice(("the", "the", "") if definite else ("the", "the", "a", "a", ""))
    if determiner == "a" and word in (*lexicon.PLURAL_CLASSES, "luggage"):
        determiner = ""
    return with_determiner(determiner, words)


def join_doings(after: list[str], random: Random) -> None:
    """Join what somebody does by "and": "wearing a red shirt and holding an umbrella"."""
    for k in range(1, len(after)):
        first, second = (text.removeprefix("who is ") for text in after[k - 1 : k + 1])
        doings = first.split()[0].endswith("ing") and second.split()[0].endswith("ing")
        if doings and random.random() < 0.7:
            after[k] = f"and {second}"


def is_person(word: str) -> bool:
    return word == lexicon.PERSON or lexicon.class_of_word(word) == lexicon.PERSON


def telegram(word: str, filters: list, random: Random) -> str | None:
    """Short, as people type: "red shirt", "blue shirt guy", "umbrella man"; None mostly."""
    if len(filters) != 1 or random.random() > 0.15:
        return None
    kind, *values = filters[0]
    if kind == "color" and values[0] in ("top", "any"):
        noun = "" if word == lexicon.PERSON and random.random() < 0.5 else f" {word}"
        return f"{values[1]} shirt{noun}"
    if kind == "relation" and values[0] in ("holding", "wearing") and len(values[1]) == 1:
        thing = values[1][0][1]
        return f"{thing} {word}" if thing not in lexicon.PLURAL_CLASSES else None
    return None


NO_LINK = ("with", "of", "{}", "a ", "the ", "an ", "person is", "from")


def kind_is(filters: list, kind: str) -> bool:
    return any(each[0] == kind for each in filters)


def role_of(first: tuple, random: Random) -> str | None:
    """ "skier" for the person on skis, and so on."""
    if first[0] != "relation" or len(first[2]) > 1:
        return None
    names = lexicon.ROLES.get((first[2][0][1], first[1]))
    return random.choice(names) if names else None


def with_determiner(determiner: str, words: str) -> str:
    """The words behind "the", "a" or "an", or nothing.

    >>> with_determiner("a", "orange car"), with_determiner("", "dog")
    ('an orange car', 'dog')
    """
    if determiner == "a" and words[0] in "aeiou" and not words.startswith(("one", "uni")):
        determiner = "an"
    return f"{determiner} {words}".strip()


def sided(ways: dict, side: str, place: int, random: Random) -> str:
    """One way of saying a side; those for right are those for left with the word swapped."""
    found = ways["left" if side == "right" else side][place]
    if not found:
        return ""
    chosen = random.choice(found)
    return chosen.replace("left", "right") if side == "right" else chosen


def say_color(values: list, word: str, random: Random) -> tuple[str, str]:
    part, color = values
    if color == "gray" and random.random() < 0.4:
        color = "grey"
    if part == "whole":
        return (color if random.random() < 0.92 else f"{color} colored"), (
            "" if random.random() < 0.8 else f"that is {color}"
        )
    return "", random.choice(WORN[part]).format(color)


def say_side(values: list, word: str, random: Random) -> tuple[str, str]:
    return sided(SIDES, values[0], 0, random), sided(SIDES, values[0], 1, random)


def say_corner(values: list, word: str, random: Random) -> tuple[str, str]:
    corner = random.choice(LEVELS[values[0]]) + " " + values[1]
    post = (
        "in the {}",
        "on the {}",
        "at the {}",
        "in the {} corner",
        "on {}",
        "in {} corner",
        "at the {} of the picture",
    )
    return corner, random.choice(post).format(corner)


def say_most(values: list, word: str, random: Random) -> tuple[str, str]:
    side = values[0]
    if side in ("left", "right") and random.random() < 0.1:
        return "", random.choice((f"first from the {side}", f"first from {side}"))
    return sided(MOST, side, 0, random), sided(MOST, side, 1, random)


def say_rank(values: list, word: str, random: Random) -> tuple[str, str]:
    """Both parts are said, where there are two."""
    rank, side = values
    ordinal, start = random.choice(ORDINALS[rank]), random.choice(("from the ", "from ", "from the "))
    return (ordinal, start + side) if random.random() < 0.5 else ("", f"{ordinal} {start}{side}")


def say_inner(values: list, word: str, random: Random) -> tuple[str, str]:
    return random.choice(INNER[0]), random.choice(INNER[1])


def say_relation(values: list, word: str, random: Random) -> tuple[str, str]:
    name, anchor = values
    thing = anchor[0][1]
    unique = name in ("left of", "right of", "above", "below", "next to", "behind", "in front of")
    of_anchor = say(
        anchor, random, "the" if (unique and random.random() < 0.7) or len(anchor) > 1 else "a", inner=True
    )
    if name.startswith(INVERSE):
        return "", random.choice(INVERSES[name.removeprefix(INVERSE)]).format(of_anchor)
    if thing in (*lexicon.BOARDS, "pair of skis") and name == "riding":
        link = random.choice(
            ON_SKIS if thing not in ("surfboard", "skateboard", "snowboard") else ("on", "riding")
        )
    elif name == "right of":
        link = random.choice(RELATIONS["left of"]).replace("left", "right")
    elif name in ("behind", "in front of") and not is_person(word):
        link = random.choice(RELATIONS[name][:-1])
    else:
        link = random.choice(RELATIONS[name])
    return "", f"{link} {of_anchor}"


def say_nearest(values: list, word: str, random: Random) -> tuple[str, str]:
    return "", f"{random.choice(NEAREST)} {say(values[0], random, 'the', inner=True)}"


def say_other(values: list, word: str, random: Random) -> tuple[str, str]:
    name = values[0]
    link = RELATIONS["left of"] if name == "right of" else RELATIONS[name]
    chosen = random.choice(link if name not in ("behind", "in front of") else link[:2])
    chosen = chosen.replace("left", "right") if name == "right of" else chosen
    other = random.choice((f"the other {word}", f"the other {word}", "the other one", f"another {word}"))
    return "", f"{chosen} {other}"


def say_told(values: list, word: str, random: Random) -> tuple[str, str]:
    text = values[0]
    if text.split()[0].endswith("ing") and random.random() < 0.3:
        text = ("who is " if is_person(word) else random.choice(("that is ", "which is "))) + text
    return "", text


WAYS = {
    "color": say_color,
    "side": say_side,
    "corner": say_corner,
    "most": say_most,
    "rank": say_rank,
    "inner": say_inner,
    "pair": say_side,
    "relation": say_relation,
    "nearest": say_nearest,
    "other": say_other,
    "told": say_told,
}
