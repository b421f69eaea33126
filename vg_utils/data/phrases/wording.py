"""Meanings put into words in many ways: with a determiner or none, before the noun or after it."""

from __future__ import annotations

from random import Random

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.meaning import Meaning
from vg_utils.data.phrases.relations import INVERSE

ORDINALS = {2: ("second", "2nd", "second"), 3: ("third", "3rd", "third"), 4: ("fourth", "4th"), 1: ("first",)}
SIDES = {  # ways to say where, before the noun and after it
    "left": (
        ("left", "left", "left side", "left hand"),
        (
            *("on the left", "on the left", "on left", "to the left", "at left", "on the left side"),
            *(
                "on the left hand side",
                "in the left",
                "on the left of the picture",
                "on the left side of the photo",
            ),
            *("at the left of the image", "to the left side", "on left side"),
        ),
    ),
    "middle": (
        ("middle", "center", "middle"),
        (
            "in the middle",
            "in the center",
            "in middle",
            "in the middle of the picture",
            "at the center",
            "in center",
        ),
    ),
    "top": (("top", "upper"), ("at the top", "on top", "on the top", "at the top of the picture", "at top")),
    "bottom": (
        ("bottom", "lower"),
        ("at the bottom", "on the bottom", "at bottom", "at the bottom of the picture"),
    ),
}
LEVELS = {"top": ("top", "top", "upper"), "bottom": ("bottom", "bottom", "lower")}
MOST = {
    "left": (
        ("leftmost", "far left", "left most", "far left"),
        (
            *("on the far left", "on far left", "furthest to the left", "farthest left", "at the far left"),
            *(
                "all the way on the left",
                "closest to the left edge",
                "on the far left side",
                "to the far left",
            ),
        ),
    ),
    "top": (("top", "topmost", "highest"), ("at the very top", "highest up", "at the top")),
    "bottom": (("bottom", "lowest"), ("at the very bottom", "lowest down", "at the bottom")),
    "largest": (("biggest", "largest", "big", "large", "bigger", "larger"), ()),
    "smallest": (("smallest", "small", "smaller", "littlest", "tiny"), ()),
    "front": (
        ("closest", "nearest", "front", "closer"),
        (
            *(
                "in front",
                "in the front",
                "closest to the camera",
                "in the foreground",
                "nearest to the camera",
            ),
            *("closest to us", "closest", "up front", "nearest the viewer"),
        ),
    ),
    "back": (
        ("farthest", "back", "background", "furthest"),
        (
            *("in the background", "in the back", "in back", "farthest from the camera", "furthest away"),
            *("in background", "farthest away", "at the back", "in the distance"),
        ),
    ),
}
WORN = {  # ways to say what colour somebody wears; "{}" is the colour
    "any": (
        *("in {}", "wearing {}", "in {}", "dressed in {}"),
        *(
            "in a {} shirt",
            "wearing a {} shirt",
            "with {} shirt",
            "in {} shirt",
            "in {} top",
            "wearing a {} top",
        ),
    ),
    "top": (
        *(
            "in a {} shirt",
            "wearing a {} shirt",
            "with a {} shirt",
            "in {} shirt",
            "in the {} shirt",
            "with {} shirt",
        ),
        *("wearing a {} top", "in a {} top", "in {} top"),
    ),
    "bottom": ("in {} pants", "wearing {} pants", "with {} pants", "in {} trousers", "who wears {} pants"),
}
RELATIONS = {
    "left of": ("to the left of", "left of", "on the left of", "to the left side of", "on the left side of"),
    "above": ("above", "over", "above"),
    "below": ("below", "under", "beneath", "underneath"),
    "next to": ("next to", "beside", "by", "near", "next to", "close to"),
    "behind": ("behind", "in back of", "behind", "standing behind"),
    "in front of": ("in front of", "in front of", "standing in front of"),
    "on": ("on", "on top of", "lying on", "on"),
    "holding": ("holding", "holding", "with", "who is holding", "who holds", "carrying", "that has"),
    "wearing": ("wearing", "with", "wearing", "who is wearing", "that has on"),
    "riding": ("riding", "on", "who is riding", "riding on", "on top of", "who rides"),
    "sitting on": ("sitting on", "on", "seated on", "who is sitting on", "sitting down on", "who sits on"),
    "having": ("with", "who has", "with", "that has"),
}
ON_SKIS = ("on", "wearing", "with", "riding", "who is on")
BEHIND_THINGS = ("behind", "in back of", "behind")
INVERSES = {  # "{}" is the person
    "holding": (
        *("held by {}", "that {} is holding", "{} is holding", "in the hands of {}", "being held by {}"),
        *("which {} is holding", "carried by {}"),
    ),
    "wearing": ("worn by {}", "that {} is wearing", "{} is wearing", "on {}"),
    "riding": (
        "that {} is riding",
        "{} is riding",
        "ridden by {}",
        "under {}",
        "being ridden by {}",
        "with {} on it",
    ),
    "sitting on": (
        "that {} is sitting on",
        "{} is sitting on",
        "with {} sitting on it",
        "{} sits on",
        "under {}",
    ),
    "having": ("of {}", "with {}", "that {} has"),
    "on": ("with {} on it", "that has {} on it", "with {} on top"),
}
NEAREST = ("closest to", "nearest to", "nearest", "closest to")


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
    person = lexicon.class_of_word(word) == lexicon.PERSON or word == lexicon.PERSON
    before, after, hangs, definite = [], [], [], False
    for kind, *values in filters:
        pre, post = WAYS[kind](values, word, random)
        definite |= kind in ("most", "rank", "pair", "nearest", "other")
        # A noun carries two words before it at most: "the large left red car" is nobody's way to speak.
        if pre and (not post or (len(before) < 1 and random.random() < 0.5)):
            before.append(pre)
        else:
            after.append(post)
            hangs.append({"relation": 1, "told": 2}.get(kind, 0))
    # What leans on another thing comes last, or its place would be taken for that thing's.
    if 1 in hangs and 2 in hangs and random.random() < 0.7:
        join_doings(after, hangs.index(1), hangs.index(2))
    after = [post for _, post in sorted(zip(hangs, after, strict=True), key=lambda pair: pair[0])]
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


def join_doings(after: list[str], first: int, second: int) -> None:
    """ "holding an umbrella and standing in the rain", where both are what somebody does."""
    does = after[first].removeprefix("who is ").split()[0].endswith("ing")
    if does and after[second].split()[0].endswith("ing"):
        after[second] = f"and {after[second]}"


NO_LINK = ("with", "of", "{}", "a ", "the ", "an ", "person is")


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


COLOR_WORDS = (
    "black",
    "white",
    "gray",
    "grey",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
)


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
    rank, side = values
    ordinal, start = random.choice(ORDINALS[rank]), random.choice(("from the ", "from ", "from the "))
    return "", f"{ordinal} {start}{side}"


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
    elif (
        name in ("behind", "in front of")
        and lexicon.class_of_word(word) != lexicon.PERSON
        and word != "person"
    ):
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
    return "", f"{chosen} the other {random.choice((word, word, 'one'))}"


def say_told(values: list, word: str, random: Random) -> tuple[str, str]:
    text = values[0]
    if text.split()[0].endswith("ing") and random.random() < 0.3:
        person = lexicon.class_of_word(word) == lexicon.PERSON or word == lexicon.PERSON
        text = ("who is " if person else random.choice(("that is ", "which is "))) + text
    return "", text


WAYS = {
    "color": say_color,
    "side": say_side,
    "corner": say_corner,
    "most": say_most,
    "rank": say_rank,
    "pair": say_side,
    "relation": say_relation,
    "nearest": say_nearest,
    "other": say_other,
    "told": say_told,
}
