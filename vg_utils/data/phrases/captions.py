"""Captions as phrases: those whose subject is the one large object of its class, their beginnings, nouns."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.caption_words import (
    ADJECTIVES,
    CUTS,
    UNSAID,
    class_of,
    joins_colors,
    subject,
)
from vg_utils.data.phrases.meaning import Meaning, only_one
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.people import agrees, filters

MAX_WORDS = 16
LEAST_AREA = 0.015  # share of the image: captions are about what is large


def phrases(captions: Sequence[list[str]], objects: Objects) -> Iterator[tuple[int, str, Meaning]]:
    """Captions, their beginnings and the noun phrases in them: (object, text, meaning) each."""
    alone = {}
    for category in set(objects.categories):
        meaning = (("main", category),)
        i = only_one(meaning, objects)
        if i is not None and objects.areas[i] > LEAST_AREA:
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
    for k in range(len(words)):
        for length in (2, 1):
            head = " ".join(words[k - length + 1 : k + 1])
            category = class_of(head)
            if k + 1 < length or category not in categories or words[k + 1 : k + 2] in (["and"], ["of"]):
                continue
            start = k - length
            while start >= 0 and (words[start] in ADJECTIVES or joins_colors(words, start)):
                start -= 1
            if start >= 0 and words[start] in ("a", "an", "the") and start < k - length:
                yield category, " ".join(words[start : k + 1])
            break


def mentions(captions: Sequence[list[str]]) -> set[str]:
    """All words of the captions, and pairs of words: what they name is not said to be absent."""
    found = set()
    for words in captions:
        found.update(words)
        found.update(map(" ".join, pairwise(words)))
    return found
