"""What people wrote about a picture: which kind of person they saw, and phrases about the one large object."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from functools import cache

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.colors import NAMES
from vg_utils.data.phrases.meaning import Meaning, only_one
from vg_utils.data.phrases.objects import Objects, members

MALE = {"man", "guy", "gentleman", "male", "businessman", "dude", "fisherman", "groom", "cowboy", "policeman"}
FEMALE = {"woman", "lady", "female", "businesswoman", "bride"}
BOY, GIRL = {"boy"}, {"girl"}
CHILD = {"child", "kid", "toddler", "baby", "infant", "boy", "girl"}
MEN = {"men", "guys", "gentlemen", "males", "businessmen", "policemen"}
WOMEN = {"women", "ladies", "females"}
ROLES = {  # what captions call people by what they do
    *(
        "person",
        "player",
        "surfer",
        "skier",
        "snowboarder",
        "skateboarder",
        "skater",
        "batter",
        "catcher",
        "pitcher",
    ),
    *(
        "cyclist",
        "bicyclist",
        "biker",
        "motorcyclist",
        "rider",
        "adult",
        "chef",
        "cook",
        "teenager",
        "worker",
    ),
    *("officer", "athlete", "boarder", "pedestrian", "student", "umpire", "jockey", "hitter", "individual"),
    *("passenger", "swimmer", "waiter", "waitress", "driver", "soldier", "tourist", "performer", "bicycler"),
}
PEOPLE = MALE | FEMALE | CHILD | ROLES
ENDS = {  # words that end the noun phrase which a caption starts with
    *(
        "in",
        "on",
        "at",
        "with",
        "of",
        "and",
        "is",
        "are",
        "that",
        "who",
        "which",
        "to",
        "near",
        "by",
        "next",
        "behind",
    ),
    *(
        "under",
        "over",
        "up",
        "down",
        "from",
        "while",
        "for",
        "has",
        "sits",
        "stands",
        "rides",
        "holds",
        "looks",
        "as",
    ),
    *(
        "wears",
        "walks",
        "plays",
        "eats",
        "lies",
        "lays",
        "flies",
        "runs",
        "jumps",
        "swings",
        "poses",
        "hits",
        "rests",
    ),
    *(
        "about",
        "after",
        "before",
        "inside",
        "outside",
        "above",
        "below",
        "beside",
        "between",
        "along",
        "across",
        "or",
    ),
    *(
        "takes",
        "makes",
        "gets",
        "goes",
        "does",
        "talks",
        "reaches",
        "uses",
        "catches",
        "throws",
        "performs",
        "dressed",
    ),
    *(
        "smiles",
        "cuts",
        "leans",
        "parked",
        "seated",
        "covered",
        "filled",
        "made",
        "being",
        "sitting",
        "standing",
        "out",
    ),
    *(
        "through",
        "into",
        "off",
        "around",
        "against",
        "where",
        "sit",
        "stand",
        "ride",
        "hold",
        "its",
        "his",
        "her",
        ",",
    ),
    *(
        "skis",
        "surfs",
        "skateboards",
        "prepares",
        "watches",
        "carries",
        "drives",
        "travels",
        "waits",
        "moves",
        "tries",
    ),
    *(
        "using",
        "playing",
        "holding",
        "riding",
        "wearing",
        "stopped",
        "traveling",
        "docked",
        "laying",
        "lying",
        "topped",
    ),
}
CUTS = {
    "in",
    "on",
    "at",
    "with",
    "near",
    "by",
    "next",
    "behind",
    "under",
    "over",
    "while",
    "and",
    "as",
    "during",
    "to",
}
CUTS |= {
    "down",
    "up",
    "from",
    "for",
    "through",
    "into",
    "along",
    "across",
    "that",
    "who",
    ",",
    "against",
    "inside",
}
NOT_ONE = {
    "group",
    "couple",
    "bunch",
    "pair",
    "two",
    "three",
    "several",
    "many",
    "some",
    "crowd",
    "row",
    "both",
    "four",
}
NOT_ONE |= {
    "people",
    "picture",
    "photo",
    "image",
    "view",
    "close",
    "each",
    "number",
    "all",
    "one",
    "half",
    "set",
    "stack",
}
UNSAID = re.compile(
    r"\b(left|right|picture|photo|photograph|image|sign|says|saying|reads|words?|writing)\b|[\"“”]|\d"
)
STATIC_ADJECTIVES = {
    *(
        "large",
        "big",
        "small",
        "little",
        "old",
        "wooden",
        "metal",
        "glass",
        "plastic",
        "striped",
        "open",
        "empty",
    ),
    *(
        "young",
        "tall",
        "long",
        "short",
        "colorful",
        "leather",
        "vintage",
        "antique",
        "double",
        "decker",
        "dirty",
    ),
    *(
        "fluffy",
        "furry",
        "passenger",
        "commuter",
        "steam",
        "city",
        "sports",
        "birthday",
        "chocolate",
        "pepperoni",
    ),
    *(
        "black",
        "white",
        "gray",
        "grey",
        "red",
        "green",
        "blue",
        "yellow",
        "brown",
        "orange",
        "pink",
        "purple",
        "tan",
    ),
    *("silver", "golden", "dark", "light", "beige", "flat", "screen", "stuffed", "baby", "gold", "bright"),
}
COLORS = {
    "black",
    "white",
    "gray",
    "grey",
    "red",
    "green",
    "blue",
    "yellow",
    "brown",
    "orange",
    "pink",
    "purple",
}
COLORS |= {"tan", "silver"}
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*|,")
MAX_WORDS = 16
_HOLD, _RIDE, _SIT = lexicon.HELD, lexicon.RIDDEN + lexicon.BOARDS, lexicon.SEATS
VERBS = {  # a verb of captions: the things that it goes with, and the relation that it proves
    **dict.fromkeys(("holding", "holds", "carrying", "swinging", "swings", "carries"), (_HOLD, "holding")),
    **dict.fromkeys(("riding", "rides", "on"), (_RIDE, "riding")),
    **dict.fromkeys(("sitting", "sits", "seated"), (_SIT, "sitting on")),
    **dict.fromkeys(("wearing", "wears"), (lexicon.WORN, "wearing")),
    "with": (_HOLD + lexicon.WORN, "having"),
}


def words_of(caption: str) -> list[str]:
    """Words in lower case and commas."""
    return WORD.findall(caption.lower())


@cache
def class_of(head: str) -> str:
    """The class that a head noun of a caption names; itself if it is no other name of a class."""
    return lexicon.PERSON if head in PEOPLE else lexicon.class_of_word(head) or head


def prove_people(captions: Sequence[list[str]], objects: Objects) -> dict[str, int]:
    """The kinds of people that at least two captions name and none denies.

    One large person takes what the captions say of one; several are all men (women) where captions speak of men
    (women) and of nobody else.
    """
    people = members(objects.named(lexicon.PERSON).sure)
    if not people or not captions:
        return {}

    def count(words: set[str]) -> int:
        return sum(not words.isdisjoint(caption) for caption in captions)

    man, woman, boy, girl = count(MALE), count(FEMALE), count(BOY), count(GIRL)
    men, women = count(MEN), count(WOMEN)
    children, child = count({"children", "kids", "boys", "girls"}), count(CHILD)
    if len(people) > 1:
        everyone = sum(1 << i for i in people)
        if len(people) <= 4 and not child + children + count({"couple", "family"}):
            if men >= 2 and not woman + women:
                return {"man": everyone}
            if women >= 2 and not man + men:
                return {"woman": everyone}
        return each_of_several(captions, objects)
    one = 1 << people[0]
    if men + women + children:
        return {}
    if man + boy >= 2 and not woman + girl:
        return {"man" if not child else "boy" if not man else "male": one}
    if woman + girl >= 2 and not man + boy:
        return {"woman" if not child else "girl" if not woman else "female": one}
    return {"child": one} if child >= 2 and not man + woman else {}


def each_of_several(captions: Sequence[list[str]], objects: Objects) -> dict[str, int]:
    """The kinds of people whom at least two captions tell apart by what they hold, ride or wear."""
    votes: dict[int, list[str]] = {}
    for words in captions:
        found = subject(words, (lexicon.PERSON,))
        if found is not None:
            i = only_one((("main", lexicon.PERSON), *filters(words[found[0] :])), objects)
            if i is not None:
                votes.setdefault(i, []).append(kind_of(words[: found[0]]))
    kinds: dict[str, int] = {}
    for i, said in votes.items():
        named = {kind for kind in said if kind}
        if len(named) == 1 and len(said) - said.count("") >= 2:
            kind = named.pop()
            kinds[kind] = kinds.get(kind, 0) | 1 << i
    return kinds


def kind_of(noun_phrase: list[str]) -> str:
    """The kind of person that a noun phrase names, or nothing."""
    said = set(noun_phrase)
    for kind, words in (("man", MALE), ("woman", FEMALE), ("boy", BOY), ("girl", GIRL), ("child", CHILD)):
        if said & words:
            return kind
    return ""


def filters(rest: list[str]) -> list[tuple]:
    """What a caption says of a person that boxes and colours can prove: clothes, things held, ridden, worn."""
    found: list[tuple] = []
    for k, word in enumerate(rest):
        if word in ("in", "wearing"):
            colors = [w for w in rest[k + 1 : k + 3] if w in COLORS]
            joined_colors = rest[k + 1 : k + 4].count("and")
            color = colors[0].replace("grey", "gray") if colors and not joined_colors else None
            if color in NAMES:
                found.append(("color", "any", color))
        for end in range(k + 2, min(k + 6, len(rest) + 1)):
            categories = [class_of(" ".join(rest[end - n : end])) for n in (2, 1) if end - n > k]
            thing = next((c for c in categories if c in VERBS.get(word, ((), ""))[0]), None)
            if thing is not None:
                found.append(("relation", VERBS[word][1], (("all", thing),)))
                break
    return found


def subject(words: list[str], categories: Container[str]) -> tuple[int, str] | None:
    """Where the noun phrase that the caption starts with ends, and the class of its head; None if not one thing.

    >>> subject("a young man riding a wave".split(), {"person"})
    (3, 'person')
    """
    if not words or words[0] not in ("a", "an", "the", "one", "this"):
        return None
    end = 1
    while end < len(words) and (joins_colors(words, end) or not ends_noun(words[end], end)):
        end += 1
    if not 2 <= end <= 6 or not NOT_ONE.isdisjoint(words[1:end]):
        return None
    if words[end : end + 1] in (["and"], ["of"], [","], ["or"]):
        return None
    for head in (" ".join(words[end - 2 : end]), words[end - 1]):
        category = class_of(head)
        if category in categories:
            return end, category
    return None


def ends_noun(word: str, position: int) -> bool:
    """Whether a noun phrase ends before the word: a preposition, a verb, a participle."""
    return word in ENDS or (word.endswith("ing") and position > 1)


def joins_colors(words: list[str], k: int) -> bool:
    """Whether the word is the "and" of "a black and white dog"."""
    return (
        words[k] == "and" and words[k - 1] in COLORS and words[k + 1 : k + 2] != [] and words[k + 1] in COLORS
    )


def phrases(captions: Sequence[list[str]], objects: Objects) -> Iterator[tuple[int, str, Meaning]]:
    """Captions, their beginnings and the noun phrases in them: (object, text, meaning) each."""
    alone = {}
    for category in set(objects.categories):
        meaning = (("main", category),)
        i = only_one(meaning, objects)
        if i is not None and objects.areas[i] > 0.015:
            alone[category] = i, meaning
    for words in captions:
        found = subject(words, {*alone, lexicon.PERSON})
        if found is not None:
            end, category = found
            i, meaning = alone.get(category, (None, ()))
            proof = filters(words[end:]) if category == lexicon.PERSON and i is None else ()
            if proof:
                meaning = (("main", category), *proof)
                i = only_one(meaning, objects)
            if i is not None and agrees(words[:end], objects, i):
                for text in about_subject(words, end, whole=bool(proof)):
                    if not UNSAID.search(text):
                        yield i, text, meaning
        for category, text in inner_phrases(words, alone):
            if category != lexicon.PERSON and not UNSAID.search(text):
                yield alone[category][0], text, alone[category][1]


def agrees(noun_phrase: list[str], objects: Objects, i: int) -> bool:
    """Whether the words for a person contradict nothing that the captions together prove."""
    kinds = [kind for kind, people in objects.people.items() if people >> i & 1]
    said = set(noun_phrase)
    if objects.categories[i] != lexicon.PERSON or said.isdisjoint(MALE | FEMALE | BOY | GIRL | CHILD):
        return True
    if said & MALE:
        return bool({"man", "male"}.intersection(kinds))
    if said & FEMALE:
        return bool({"woman", "female"}.intersection(kinds))
    if said & BOY:
        return bool({"boy", "male"}.intersection(kinds))
    if said & GIRL:
        return bool({"girl", "female"}.intersection(kinds))
    return bool({"boy", "girl", "child"}.intersection(kinds))


def about_subject(words: list[str], end: int, whole: bool) -> Iterator[str]:
    """The whole caption and, unless only the whole is proved, its beginnings up to where more is told."""
    noun_phrase, rest = words[:end], words[end:]
    if noun_phrase[0] in ("this", "one"):
        noun_phrase = ["a", *noun_phrase[1:]]
    if rest[:1] == ["is"] and len(rest) > 1 and rest[1].endswith("ing"):
        rest = rest[1:]
    if len(noun_phrase) > 2 and not whole:
        yield " ".join(noun_phrase)
    if rest and len(noun_phrase) + len(rest) <= MAX_WORDS:
        yield joined([*noun_phrase, *rest])
    for k in range(2, 0 if whole else len(rest)):
        if (
            rest[k] in CUTS
            and rest[k - 1] not in CUTS
            and rest[k - 1] not in ("a", "an", "the", "top", "front")
        ):
            yield joined([*noun_phrase, *rest[:k]])
            break


def joined(words: list[str]) -> str:
    return " ".join(words).replace(" ,", ",").strip(" ,")


def inner_phrases(words: list[str], categories: Container[str]) -> Iterator[tuple[str, str]]:
    """Nouns with adjectives inside a caption: "a red umbrella"."""
    for k, word in enumerate(words):
        for length in (2, 1):
            head = " ".join(words[k - length + 1 : k + 1])
            category = class_of(head)
            if k + 1 < length or category not in categories or words[k + 1 : k + 2] in (["and"], ["of"]):
                continue
            start = k - length
            while start >= 0 and (words[start] in STATIC_ADJECTIVES or joins_colors(words, start)):
                start -= 1
            if start >= 0 and words[start] in ("a", "an", "the") and start < k - length:
                yield category, " ".join(words[start : k + 1])
            break


def mentions(captions: Sequence[list[str]]) -> set[str]:
    """All words of the captions, and pairs of words: what they name is not said to be absent."""
    found = set()
    for words in captions:
        found.update(words)
        found.update(map(" ".join, zip(words, words[1:], strict=False)))
    return found
