"""Captions as phrases: those whose subject is the one large object of its class, their beginnings, nouns."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise, product
from random import Random

from vg_utils.data.phrases.caption_words import ADJECTIVES, PEOPLE, UNSAID, class_of, joins_colors, listed
from vg_utils.data.phrases.lexicon import PERSON
from vg_utils.data.phrases.meaning import Meaning, only_one
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.people import agrees
from vg_utils.data.phrases.told import LEAST_AREA, Subject, first_cut, joined, meant, overlaps, told_of

MAX_WORDS = 16
MOST_JOINED = 4  # phrases of an object that join what two captions tell


def phrases(
    captions: Sequence[list[str]], objects: Objects, random: Random
) -> Iterator[tuple[int, str, Meaning]]:
    """Captions, their beginnings, noun phrases in them, and what two tell: (object, text, meaning) each."""
    alone = {}
    for category in objects.of_class:
        meaning = (("chief", category),)
        i = only_one(meaning, objects)
        if i is not None and objects.areas[i] > LEAST_AREA:
            alone[category] = i, meaning
    starts: dict[int, list[tuple[list[str], Subject]]] = {}
    for words in captions:
        found = meant(words, objects)
        if found is not None:
            starts.setdefault(found.object, []).append((words, found))
            for text in about_subject(words, found.end, whole=found.by_rest):
                if not UNSAID.search(text):
                    yield found.object, text, found.meaning
        for category, text in inner_phrases(words, alone):
            if not UNSAID.search(text) and agrees(text.split(), objects, alone[category][0]):
                yield alone[category][0], text, alone[category][1]
    for i, own in starts.items():
        joins = list(dict.fromkeys(join_two(own, told_of(objects, i))))
        for text, meaning in random.sample(joins, min(MOST_JOINED, len(joins))):
            yield i, text, meaning


def about_subject(words: list[str], end: int, whole: bool) -> Iterator[str]:
    """The whole caption and, unless only the whole is proved, its beginnings up to where more is told."""
    noun_phrase, rest = opened(words[:end]), words[end:]
    if rest[:1] == ["is"] and len(rest) > 1 and rest[1].endswith("ing"):
        rest = rest[1:]
    if len(noun_phrase) > 2 and not whole:
        yield " ".join(noun_phrase)
    if rest and len(noun_phrase) + len(rest) <= MAX_WORDS:
        yield joined([*noun_phrase, *rest])
    cut = None if whole else first_cut(rest)
    if cut is not None:
        yield joined([*noun_phrase, *rest[:cut]])


def opened(noun_phrase: list[str]) -> list[str]:
    """The noun phrase with "a" for "this" and "one"."""
    return ["a", *noun_phrase[1:]] if noun_phrase[0] in ("this", "one") else noun_phrase


def join_two(own: list[tuple[list[str], Subject]], told: list[str]) -> Iterator[tuple[str, Meaning]]:
    """Beginnings of captions about one object, each with what another caption tells of it.

    "a man in a red shirt" and "a player holding a racket": "a man in a red shirt holding a racket".
    """
    for words, found in own:
        noun_phrase, rest = opened(words[: found.end]), joined(words[found.end :])
        tails = [text for text in told if text not in rest and not overlaps(text, " ".join(words))]
        firsts = [""] if not found.by_rest else []
        firsts += [text for text in told if rest.endswith(text) or (not found.by_rest and text in rest)]
        for first, tail in product(firsts, tails):
            text = joined_by(" ".join(noun_phrase), first, tail)
            if text and len(text.split()) <= MAX_WORDS and not UNSAID.search(text):
                yield text, found.meaning


def joined_by(noun_phrase: str, first: str, second: str) -> str | None:
    """Two things that are told of one, as one phrase; None where they do not go together."""
    if not first:
        return f"{noun_phrase} {second}"
    start, doing = first.split()[0], second.split()[0].endswith("ing")
    if doing and start in ("in", "with", "wearing"):
        return f"{noun_phrase} {first} {second}"
    return f"{noun_phrase} {first} and {second}" if doing and start.endswith("ing") else None


def inner_phrases(words: list[str], categories: Container[str]) -> Iterator[tuple[str, str]]:
    """Nouns with adjectives or a place inside a caption: "a red umbrella", "the laptop on the desk"."""
    people = sum(word in PEOPLE for word in words)
    for k in range(len(words)):
        for length in (2, 1):
            head = " ".join(words[k - length + 1 : k + 1])
            category = class_of(head)
            if k + 1 < length or category not in categories or words[k + 1 : k + 2] in (["and"], ["of"]):
                continue
            start = k - length
            while start >= 0 and (words[start] in ADJECTIVES or joins_colors(words, start)):
                start -= 1
            if start < 0 or words[start] not in ("a", "an", "the") or (category == PERSON and people > 1):
                break
            noun_phrase = words[start : k + 1]
            if start < k - length and category != PERSON:
                yield category, " ".join(noun_phrase)
            place = place_after(words, k + 1, near=words[start - 1] != "on")
            if start and place:
                yield category, joined([*noun_phrase, *place])
            break


def place_after(words: list[str], start: int, near: bool) -> list[str]:
    """The words that say where the thing before them is, if they are short and no clothes; else none."""
    if words[start : start + 1] not in [
        ["on"],
        ["in"],
        ["under"],
        *([["near"], ["next"], ["beside"]] * near),
    ]:
        return []
    end = first_cut(words[start:])
    found = words[start : None if end is None else start + end]
    return found if 3 <= len(found) <= 6 and CLOTHES.isdisjoint(found) else []


CLOTHES = listed(
    "cap clothes clothing coat costume dress gear hat helmet jacket outfit pants shirt shorts suit uniform"
)


def mentions(captions: Sequence[list[str]]) -> set[str]:
    """All words of the captions, and pairs of words: what they name is not said to be absent."""
    found = set()
    for words in captions:
        found.update(words)
        found.update(map(" ".join, pairwise(words)))
    return found
