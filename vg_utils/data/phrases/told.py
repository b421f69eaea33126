"""What captions tell of one object or of all of a class, in words that can follow a noun: "on a beach"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.caption_words import (
    ADJECTIVES,
    COLORS,
    CUTS,
    UNSAID,
    listed,
    plural_subject,
    subject,
)
from vg_utils.data.phrases.meaning import Meaning, only_one
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.people import HE, SHE, agrees, filters

LEAST_AREA = 0.015  # share of the image: captions are about what is large
MOST_WORDS, FEWEST_WORDS = 9, 2  # of what is told
FINITE = {  # "a man rides a wave" becomes "the man riding a wave"
    **{"rides": "riding", "ride": "riding", "stands": "standing", "stand": "standing", "sits": "sitting"},
    **{"sit": "sitting", "holds": "holding", "hold": "holding", "walks": "walking", "walk": "walking"},
    **{"lays": "laying", "lay": "laying", "lies": "lying", "lie": "lying", "looks": "looking"},
    **{"look": "looking", "plays": "playing", "play": "playing", "graze": "grazing", "grazes": "grazing"},
    **{"eats": "eating", "eat": "eating", "runs": "running", "run": "running", "wears": "wearing"},
    **{"swings": "swinging", "jumps": "jumping", "flies": "flying", "fly": "flying", "rests": "resting"},
    **{"watches": "watching", "watch": "watching", "waits": "waiting", "wait": "waiting", "uses": "using"},
    **{"talks": "talking", "smiles": "smiling", "poses": "posing", "pose": "posing", "drives": "driving"},
    **{"catches": "catching", "throws": "throwing", "carries": "carrying", "prepares": "preparing"},
    **{"gather": "gathering", "travels": "traveling", "sleeps": "sleeping"},
}
VERBS_OF_CLAUSES = frozenset(verb for verb in FINITE if verb.endswith("s")) | listed(
    "is are was does has have"
)
UNFINISHED = listed(  # words that nothing can end with
    """
    a about able an are as both front getting going has have her his how is its ready some that the top trying
    upside very which who
    """
)
PUT = listed("letting making placing putting setting taking trying")  # somewhere, which a cut would leave out
POSTURES = listed(
    "jumping lay laying leaning lying riding running seated sitting sits standing stands walking"
)
STARTS = listed("at covered docked dressed in near on parked seated stopped wearing with")
OF_ALL = listed(  # done by each by itself; one of them can be said to do it
    """
    dressed drinking eating grazing jumping laying looking lying parked playing posing resting riding running
    seated sitting skating skiing sleeping smiling standing surfing swimming swinging waiting walking watching
    wearing
    """
)
NOT_EACH = listed(  # together: of one alone it is no English, or false
    """
    across against all along and another around beside between both chase chasing circle close different each
    either facing fighting five four game group his her hugging kissing line lined many match middle multiple
    one other others pair racing row same several side some their them themselves these three together
    two various while with
    """
)
SINGULAR_S = listed("across bus class glass grass is its skis tennis this us")
MANY_OF = listed("birds trees woods rocks mountains bushes leaves clouds waves weeds stairs steps branches")
MALES, FEMALES = frozenset(("man", "boy", "male")), frozenset(("woman", "girl", "female"))


class Subject(NamedTuple):
    """Whom a caption starts with: where its noun phrase ends, the object, what proves that, and whether what
    follows the noun phrase is part of the proof."""

    end: int
    object: int
    meaning: Meaning
    by_rest: bool


def meant(words: list[str], objects: Objects) -> Subject | None:
    """The object that a caption starts with, if it is the one large one of its class or its doing tells."""
    found = subject(words, objects.of_class)
    if found is None:
        return None
    end, category = found
    meaning: Meaning = (("chief", category),)
    i = only_one(meaning, objects)
    proof = filters(words[end:]) if category == lexicon.PERSON and i is None else ()
    if proof:
        meaning = (("main", category), *proof)
        i = only_one(meaning, objects)
    if i is None or objects.areas[i] < LEAST_AREA or not agrees(words[:end], objects, i):
        return None
    return Subject(end, i, meaning, bool(proof))


def meant_all(words: list[str], objects: Objects) -> tuple[int, int] | None:
    """Where the plural noun phrase that a caption starts with ends, and all objects that it means."""
    found = plural_subject(words)
    if found is None:
        return None
    end, category, least, most = found
    sure, maybe = objects.named(category)
    if sure != maybe or not least <= sure.bit_count() <= most:
        return None
    return end, sure


def tell(captions: Sequence[list[str]], objects: Objects) -> dict[str, int]:
    """What captions say of objects -> the set of those of whom it is true."""
    found: dict[str, int] = {}
    for words in captions:
        if one := meant(words, objects):
            whom = 1 << one.object
            texts = [text for text in tails(words[one.end :]) if pronouns_fit(text, objects, one.object)]
        elif several := meant_all(words, objects):
            end, whom = several
            texts = [text for text in tails(words[end:]) if is_of_each(text.split())]
        else:
            continue
        for text in texts:
            found[text] = found.get(text, 0) | whom
    return found


def tails(rest: list[str]) -> Iterator[str]:
    """What follows the subject, if it can follow a noun: all of it if it is short, and its beginning."""
    while rest[:1] and rest[0] in ("is", "are", "that", "who", "which"):
        rest = rest[1:]
    if not rest:
        return
    rest = [FINITE.get(rest[0], rest[0]), *without_clause(rest[1:])]
    if not (rest[0].endswith("ing") or rest[0] in STARTS):
        return
    texts = [rest] if len(rest) <= MOST_WORDS else []
    cut = first_cut(rest)
    if cut is not None and cut <= MOST_WORDS:
        texts.append(rest[:cut])
    for words in texts:
        text = joined(words)
        if words[-1] in CUTS or words[-1] in UNFINISHED:
            continue
        if len(words) >= FEWEST_WORDS and not UNSAID.search(text):
            yield text


def without_clause(words: list[str]) -> list[str]:
    """The words up to where another verb has its say: "in a hat | is riding a horse"."""
    end = next((k for k, word in enumerate(words) if word in VERBS_OF_CLAUSES), len(words))
    if end < len(words):
        end = next(
            (k for k in range(end) if words[k] in ("as", "that", "where", "which", "while", "who")), end
        )
    return words[:end]


def first_cut(rest: list[str]) -> int | None:
    """Where something more is told; what stands before can be said alone."""
    if not PUT.isdisjoint(rest[:3]):
        return None
    for k in range(2, len(rest)):
        whole = rest[k - 1] not in CUTS and rest[k - 1] not in UNFINISHED
        listing = rest[k] in ("and", ",") and rest[k - 1] in COLORS | ADJECTIVES  # "a small, brown dog"
        if rest[k] in CUTS and whole and not listing:
            return k
    return None


def is_of_each(words: list[str]) -> bool:
    """Whether what is told of several is true of each of them, and can be said of one."""
    if words[0] not in OF_ALL or not NOT_EACH.isdisjoint(words):
        return False
    return all(w in SINGULAR_S or w in MANY_OF for w in words if re.search(r"s$|\b(?:people|men|women)$", w))


def pronouns_fit(text: str, objects: Objects, i: int) -> bool:
    """Whether "his" and "her" in the text go with what is known of the person."""
    kinds, said = {kind for kind, people in objects.people.items() if people >> i & 1}, set(text.split())
    return not ((said & HE and kinds & FEMALES) or (said & SHE and kinds & MALES))


def joined(words: list[str]) -> str:
    """Words as a text, commas where they belong."""
    return " ".join(words).replace(" ,", ",").strip(" ,")


def overlaps(text: str, other: str) -> bool:
    """Whether two texts tell of the same: a word of content in common."""

    def content(words: str) -> set[str]:
        named = [
            lexicon.class_of_word(word) or ("posed" if word in POSTURES else word) for word in words.split()
        ]
        return set(" ".join(named).split()) - SMALL_WORDS

    return not content(text).isdisjoint(content(other))


SMALL_WORDS = listed("a an and at by for from her his in is it its of on the to up while with , over next")


def mentions_class(text: str, category: str) -> bool:
    """Whether the text names the class, in any number."""
    return any(re.search(rf"\b{re.escape(name)}\b", text) for name in lexicon.mentions_of(category))


def told_of(objects: Objects, i: int) -> list[str]:
    """What captions tell of the object."""
    return [text for text, whom in objects.told.items() if whom >> i & 1]
