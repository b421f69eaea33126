"""Phrases of RefScenes that fit nothing in the image: true ones with exactly one thing changed.

One attribute, side, relation or rank becomes another, or the solid that the phrase leans on does. What comes
out is executed, and kept only if it fits no solid beyond dispute (`grammar.fits_nothing`). It is put into
words like any other phrase. All ways to change a phrase are tried before another phrase is taken, so neither
families nor words give away that a phrase is absent; `data/README.md` says how nearly.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from random import Random

from vg_utils.refscenes.expressions import (
    FAMILIES,
    MAX_WORDS,
    MIN_WORDS,
    phrase,
    some_anchor,
    write_expression,
)
from vg_utils.refscenes.grammar import Facts, Filter, Program, fits_nothing
from vg_utils.refscenes.raycast import SHAPES
from vg_utils.refscenes.sampling import COLORS, HELD_OUT, MATERIALS, SIZES, may_refer

SIDES = ("left", "right", "front", "back")
EXCHANGES = {  # (kind of program or attribute, place in it): groups of words that may stand for each other
    ("shape", 1): (SHAPES,),
    ("color", 1): (tuple(COLORS),),
    ("material", 1): (MATERIALS,),
    ("size", 1): (tuple(SIZES),),
    ("zone", 1): (("left", "right", "middle"),),
    ("order", 1): ((2, 3, 4),),
    ("order", 2): (SIDES,),
    ("relation", 1): (("left", "right", "behind", "front"), ("larger", "smaller")),
}
ANCHORS = {"relation": (3,), "between": (2, 3)}  # kind of program: places of the solids that it leans on
TRIES = 100  # phrases to start from, before an image goes without
SELDOM = {4: 0.1, "middle": 0.3}  # words that fit nothing too readily: how often such a change is let through
PRESENT = 0.85  # how often an attribute may become only one that some solid of the image has, if that works


def write_absent(
    facts: Facts, random: Random, count: int, novel: bool = False
) -> list[tuple[int, str, Program, str]]:
    """Up to `count` different phrases that fit nothing: (solid it was true of, family, program, text) each.

    Args:
        facts: the image.
        random: the only source of chance.
        count: how many are wanted.
        novel: of the split that shows `HELD_OUT` pairs; elsewhere no phrase names one, or its name alone
            would say that it is absent.
    """
    weights = may_refer(facts, novel)
    written: list[tuple[int, str, Program, str]] = []
    avoid: tuple[str, ...] = ()
    for number in range(TRIES):
        if len(written) == count:
            break
        target = random.choices(tuple(weights), tuple(weights.values()))[0]
        true = write_expression(facts, target, random, avoid)
        if true is None:
            avoid = ()
            continue
        family, program, _ = true
        # A family that seldom succeeds has more tries, so that all are as frequent as among true phrases.
        avoid = () if number % 5 == 4 else tuple(other for other in FAMILIES if other != family)
        changed = near_miss(family, program, facts, target, random, novel)
        if changed is None or changed in [other for _, _, other, _ in written]:
            continue
        text = phrase(changed, random)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            written.append((target, family, changed, text))
            avoid = ()
    return written


def near_miss(
    family: str, program: Program, facts: Facts, target: int, random: Random, novel: bool = False
) -> Program | None:
    """The program with one thing changed such that it fits nothing, or None where no change does that.

    Args:
        family: of the program, which it keeps.
        program: one that means `target`.
        facts, target, random, novel: see `write_absent`.
    """
    changes = [*exchanged(program), *other_anchors(family, program, facts, target, random)]
    random.shuffle(changes)
    for change in changes:
        random.shuffle(change)
    values = {value for group in (SHAPES, COLORS, MATERIALS, SIZES) for value in group}
    missing = values.difference(*(looks.values() for looks in facts.looks))
    for left_out in (missing, set()) if random.random() < PRESENT else (set(),):
        for word, other in chain.from_iterable(changes):
            let_through = word not in left_out and random.random() < SELDOM.get(word, 1.0)
            if let_through and is_sayable(other, novel) and fits_nothing(other, facts):
                return other
    return None


def exchanged(program: Program) -> Iterator[list[tuple[str | int, Program]]]:
    """For every word that can be exchanged, all other words and the programs with them in its place."""
    for place, part in enumerate(program):
        if isinstance(part, tuple):
            for change in exchanged(part):
                yield [(word, with_part(program, place, other)) for word, other in change]
        for group in EXCHANGES.get((program[0], place), ()):
            if part in group:
                yield [(word, with_part(program, place, word)) for word in group if word != part]


def other_anchors(
    family: str, program: Program, facts: Facts, target: int, random: Random
) -> Iterator[list[tuple[str, Program]]]:
    """The same for the solids that the program leans on: descriptions of others in their place."""
    for place in ANCHORS.get(program[0], ()):
        anchors = (some_anchor(facts, target, random, family == "two-step") for _ in range(4))
        yield [("", with_part(program, place, anchor[1])) for anchor in anchors if anchor is not None]


def with_part(program: Program, place: int, part: str | int | Program) -> Program:
    """The program with another part in one place."""
    return (*program[:place], part, *program[place + 1 :])


def is_sayable(program: Program, novel: bool) -> bool:
    """Whether it names colours and shapes together as the true phrases of the split do.

    Those of `novel` are about `HELD_OUT` pairs; those of the other splits name no such pair anywhere.
    """
    named = list(filters(program))
    if program[0] == "except":  # "the red thing that is not a cone" names a red cone as well
        named.append((*program[1], program[2:]))
    pairs = [(dict(wanted).get("color"), dict(wanted).get("shape")) for wanted in named]
    if novel:
        return None in pairs[0] or pairs[0] in HELD_OUT
    return HELD_OUT.isdisjoint(pairs)


def filters(program: Program) -> Iterator[Filter]:
    """All filters of a program; the first says what the program is about."""
    for part in program:
        if isinstance(part, tuple) and (not part or isinstance(part[0], tuple)):
            yield part
        elif isinstance(part, tuple):
            yield from filters(part)
