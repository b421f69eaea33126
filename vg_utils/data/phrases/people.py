"""Which kind of person the captions prove: man, woman, boy, girl, child."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.caption_words import (
    ARTICLES,
    BOY,
    CHILD,
    CHILDREN,
    COLORS,
    FEMALE,
    GIRL,
    MALE,
    MEN,
    VERBS,
    WOMEN,
    class_of,
    plural_subject,
    subject,
)
from vg_utils.data.phrases.colors import NAMES
from vg_utils.data.phrases.meaning import only_one
from vg_utils.data.phrases.objects import Objects, members

ALONE_RATIO, ALONE_CAPTIONS = 3, 3  # so much larger than all others, somebody is whom so many captions mean
HE, SHE = frozenset(("he", "him", "his")), frozenset(("her", "hers", "she"))


def prove_people(captions: Sequence[list[str]], objects: Objects) -> dict[str, int]:
    """The kinds of people that captions name and none denies: at least two, by name or as "he", "his", "her".

    One large person takes what the captions say of one. Several are all men (women) where two captions speak
    of men (women), or one that counts them, and none of anybody else; one far larger than the others is whom
    three captions mean; else each may be told apart by what it holds, rides or wears.
    """
    people = members(objects.named(lexicon.PERSON).sure)
    if not people or not captions:
        return {}

    def count(words: frozenset[str]) -> int:
        return sum(not words.isdisjoint(caption) for caption in captions)

    if len(people) > 1:
        return all_or_largest(captions, objects, people) or each_of_several(captions, objects)
    man, woman, boy, girl = count(MALE), count(FEMALE), count(BOY), count(GIRL)
    child, one = count(CHILD), 1 << people[0]
    if count(MEN | WOMEN | CHILDREN):
        return {}
    if man + boy and count(MALE | BOY | HE) >= 2 and not woman + girl:
        return {"man" if not child else "boy" if not man else "male": one}
    if woman + girl and count(FEMALE | GIRL | SHE) >= 2 and not man + boy:
        return {"woman" if not child else "girl" if not woman else "female": one}
    return {"child": one} if child >= 2 and not man + woman else {}


def all_or_largest(captions: Sequence[list[str]], objects: Objects, people: Sequence[int]) -> dict[str, int]:
    """That several are all men, or all women; or the kind of the one that is far larger than the others."""

    def count(words: frozenset[str]) -> int:
        return sum(not words.isdisjoint(caption) for caption in captions)

    if count(CHILD | CHILDREN):
        return {}
    largest, second = sorted(people, key=objects.areas.__getitem__, reverse=True)[:2]
    for kind, one, many, others in (("man", MALE, MEN, FEMALE | WOMEN), ("woman", FEMALE, WOMEN, MALE | MEN)):
        if count(others):
            continue
        together = count(many) >= 2 or counted(captions, many, len(people))
        if together and len(people) <= 4 and not count(frozenset(("couple", "family"))):
            return {kind: sum(1 << i for i in people)}
        alone = objects.areas[largest] > ALONE_RATIO * objects.areas[second]
        if alone and count(one) >= ALONE_CAPTIONS and not count(many):
            return {kind: 1 << largest}
    return {}


def counted(captions: Sequence[list[str]], plurals: frozenset[str], count: int) -> bool:
    """Whether a caption starts with exactly so many of them: "three men"."""
    found = [(words, plural_subject(words)) for words in captions]
    return any(
        each and words[each[0] - 1] in plurals and each[2] == each[3] == count for words, each in found
    )


def each_of_several(captions: Sequence[list[str]], objects: Objects) -> dict[str, int]:
    """The kinds of people whom at least two captions tell apart by what they hold, ride or wear."""
    votes: dict[int, list[str]] = {}
    for words in captions:
        for noun_phrase, rest in people_named(words):
            i = only_one((("main", lexicon.PERSON), *filters(rest)), objects)
            if i is not None:
                votes.setdefault(i, []).append(kind_of(noun_phrase))
    kinds: dict[str, int] = {}
    for i, said in votes.items():
        named = {kind for kind in said if kind}
        if len(named) == 1 and len(said) - said.count("") >= 2:
            kind = named.pop()
            kinds[kind] = kinds.get(kind, 0) | 1 << i
    return kinds | the_other(captions, objects, kinds)


def people_named(words: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The people of a caption, each as its noun phrase and what is said of it, up to the next one."""
    starts = [k for k, word in enumerate(words) if word in ARTICLES and subject(words[k:], (lexicon.PERSON,))]
    for k, following in pairwise((*starts, len(words))):
        end = k + subject(words[k:], (lexicon.PERSON,))[0]
        yield words[k:end], words[end:following]


def the_other(captions: Sequence[list[str]], objects: Objects, kinds: dict[str, int]) -> dict[str, int]:
    """Of exactly two people, the one who is not the man (the woman), where two captions speak of both."""
    sure, maybe = objects.named(lexicon.PERSON)
    both = sum(sum(word in MALE for word in c) == 1 == sum(word in FEMALE for word in c) for c in captions)
    if sure != maybe or sure.bit_count() != 2 or both < 2 or len(kinds) != 1:
        return {}
    (kind, whom), other = next(iter(kinds.items())), {"man": "woman", "woman": "man"}
    more = any((BOY | GIRL | CHILD | CHILDREN | MEN | WOMEN).intersection(caption) for caption in captions)
    return {other[kind]: sure & ~whom} if kind in other and whom.bit_count() == 1 and not more else {}


def kind_of(noun_phrase: list[str]) -> str:
    """The kind of person that a noun phrase names, or nothing."""
    said = set(noun_phrase)
    for kind, words in (("man", MALE), ("woman", FEMALE), ("boy", BOY), ("girl", GIRL), ("child", CHILD)):
        if said & words:
            return kind
    return ""


def filters(rest: list[str]) -> list[tuple]:
    """What a caption says of a person that can be proved: clothes, and things held, ridden or worn."""
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
