"""Invents the expressions of RefScenes for a given solid, and puts their programs into words.

Eight families, 4 to 16 words. Each expression is a program of `refscenes.grammar` that was executed on
the picture and found to mean the solid; its words are drawn from several ways of saying the same.
"""

from __future__ import annotations

from random import Random

from vg_utils.refscenes.grammar import ATTRIBUTES, Facts, Filter, Program, execute, holds, select

FAMILY_WEIGHTS = {  # how often a family is tried first; the rare ones seldom succeed
    "attribute": 0.9,
    "place": 0.7,
    "relation": 0.8,
    "order": 3.2,
    "comparison": 1.0,
    "exclusion": 0.4,
    "two-step": 2.4,
    "between": 4.0,
}
FAMILIES = tuple(FAMILY_WEIGHTS)
TRIES = 10  # programs of one family before another family has its turn
MORE_TRIES = {"between": 25}
MIN_WORDS, MAX_WORDS = 4, 16

NOUNS = {
    "sphere": (("sphere", "spheres"), ("ball", "balls")),
    "cube": (("cube", "cubes"), ("block", "blocks"), ("box", "boxes")),
    "cylinder": (("cylinder", "cylinders"), ("cylinder", "cylinders"), ("drum", "drums")),
    "cone": (("cone", "cones"),),
    None: (("thing", "things"), ("object", "objects"), ("solid", "solids")),
}
ADJECTIVES = {
    "metal": ("metal", "shiny", "metallic"),
    "matte": ("matte", "rubber", "dull"),
    "large": ("large", "big"),
    "medium": ("medium-sized", "medium"),
    "small": ("small", "little", "tiny"),
}
EXTREMES = {
    "left": (
        "the {} on the far left",
        "the leftmost {}",
        "the {} furthest to the left",
        "the {} at the left end",
    ),
    "front": (
        "the {} in front of all others",
        "the {} closest to the camera",
        "the {} nearest to the camera",
    ),
    "back": ("the {} at the very back", "the {} furthest from the camera", "the {} behind all others"),
}
ZONES = {
    "left": (
        "the {} on the left",
        "the {} on the left side of the picture",
        "the {} on the left-hand side",
        "the {} in the left half",
    ),
    "middle": ("the {} in the middle", "the {} in the middle of the picture", "the {} near the centre"),
}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "behind": ("behind", "standing behind", "further back than"),
    "front": ("in front of", "closer to us than", "nearer to the camera than"),
    "larger": ("bigger than", "larger than"),
    "smaller": ("smaller than",),
}
SUPERLATIVES = {"largest": ("largest", "biggest"), "smallest": ("smallest", "tiniest")}
ORDINALS = {2: "second", 3: "third", 4: "fourth"}


def write_expression(
    facts: Facts, target: int, random: Random, avoid: tuple[str, ...] = ()
) -> tuple[str, Program, str] | None:
    """One expression for the target: (family, program, text), or None where nothing was found.

    Args:
        facts: the picture.
        target: the solid that is meant.
        random: the only source of chance.
        avoid: families that this solid already has an expression of.
    """
    weights = {family: weight for family, weight in FAMILY_WEIGHTS.items() if family not in avoid}
    while weights:
        family = random.choices(tuple(weights), tuple(weights.values()))[0]
        del weights[family]
        for _ in range(MORE_TRIES.get(family, TRIES)):
            program = propose(family, facts, target, random)
            if program is None:
                continue
            text = phrase(program, random)
            if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                return family, program, text
    return None


def propose(family: str, facts: Facts, target: int, random: Random) -> Program | None:
    """A program of the family that means the target, or None: most tries fail, so call it often.

    Every program leaves work to its words: the noun with its adjectives alone fits more than one solid (for
    `attribute`, no single adjective or noun suffices).
    """
    if family == "attribute":
        wanted = some_filter(facts, target, random, least=2)
        if any(len(select(facts, (pair,))) == 1 for pair in wanted):
            return None
        program: Program = ("only", wanted)
        return program if execute(program, facts) == target else None
    wanted = some_filter(facts, target, random)
    if len(select(facts, wanted)) < 2:
        return None
    program = PROPOSALS[family](facts, target, random, wanted)
    return program if program is not None and execute(program, facts) == target else None


def some_filter(facts: Facts, solid: int, random: Random, least: int = 0) -> Filter:
    """Some of a solid's attributes: mostly its shape, and at least so many."""
    chances = {"shape": 0.85, "color": 0.38, "material": 0.30, "size": 0.22}
    names = [name for name in ATTRIBUTES if random.random() < chances[name]]
    if len(names) < least:
        names = sorted(random.sample(ATTRIBUTES, random.choice((2, 3))), key=ATTRIBUTES.index)
    looks = facts.looks[solid]
    if "size" in names and all(other["size"] == looks["size"] for other in facts.looks):
        names.remove("size")  # nothing in the picture to compare it with
    return tuple((name, looks[name]) for name in names)


def some_anchor(
    facts: Facts, target: int, random: Random, ambiguous: bool = False
) -> tuple[int, Program] | None:
    """Another solid and its own description; if `ambiguous`, one that needs more than attributes."""
    other = random.choice([i for i in range(len(facts.x)) if i != target])
    for _ in range(3):
        wanted = some_filter(facts, other, random, least=1)
        if not ambiguous and wanted and execute(("only", wanted), facts) == other:
            return other, ("only", wanted)
        if ambiguous and len(select(facts, wanted)) > 1:
            kinds = ("relation", "relation", "place", "comparison")
            program = PROPOSALS[random.choice(kinds)](facts, other, random, wanted)
            if program is not None and execute(program, facts) == other:
                return other, program
    return None


def place(facts: Facts, target: int, random: Random, wanted: Filter) -> Program | None:
    if random.random() < 0.6:
        return ("extreme", random.choice(("left", "right", "front", "back")), wanted)
    return ("zone", random.choice(("left", "right", "middle")), wanted)


def relation(
    facts: Facts, target: int, random: Random, wanted: Filter, ambiguous: bool = False
) -> Program | None:
    anchor = some_anchor(facts, target, random, ambiguous)
    if anchor is None:
        return None
    other, program = anchor
    kinds = [kind for kind in ("left", "right", "behind", "front") if holds(facts, kind, target, other)]
    if not kinds or random.random() < 0.15:
        return ("nearest", wanted, program)
    return ("relation", random.choice(kinds), wanted, program)


def two_step(facts: Facts, target: int, random: Random, wanted: Filter) -> Program | None:
    return relation(facts, target, random, wanted, ambiguous=True)


def order(facts: Facts, target: int, random: Random, wanted: Filter) -> Program | None:
    if len(select(facts, wanted)) < 3:
        return None
    return (
        "order",
        random.choice((2, 2, 2, 3, 3, 4)),
        random.choice(("left", "right", "left", "right", "front", "back")),
        wanted,
    )


def comparison(facts: Facts, target: int, random: Random, wanted: Filter) -> Program | None:
    if any(name == "size" for name, _ in wanted):
        return None
    if random.random() < 0.6:
        return ("superlative", random.choice(("largest", "smallest")), wanted)
    anchor = some_anchor(facts, target, random)
    return anchor and ("relation", random.choice(("larger", "smaller")), wanted, anchor[1])


def exclusion(facts: Facts, target: int, random: Random, wanted: Filter) -> Program | None:
    free = [name for name in ATTRIBUTES if name not in dict(wanted)]
    if not wanted or not free:
        return None
    name = random.choice(free)
    others = {facts.looks[i][name] for i in select(facts, wanted)} - {facts.looks[target][name]}
    if len(others) != 1 or others == {"medium"}:  # "not medium-sized" is no way to speak
        return None
    return ("except", wanted, name, others.pop())


def between(facts: Facts, target: int, random: Random, wanted: Filter) -> Program | None:
    if random.random() < 0.5:
        pair = some_filter(facts, random.choice([i for i in range(len(facts.x)) if i != target]), random)
        return ("between pair", wanted, pair)
    one, two = some_anchor(facts, target, random), some_anchor(facts, target, random)
    return one and two and ("between", wanted, one[1], two[1])


PROPOSALS = {
    "place": place,
    "relation": relation,
    "order": order,
    "comparison": comparison,
    "exclusion": exclusion,
    "two-step": two_step,
    "between": between,
}


def name(wanted: Filter, random: Random, number: int = 0, before: str = "") -> str:
    """A noun with its adjectives, such as "tiny red block"; `before` is one more adjective in front of them.

    `number` is 0 for singular and 1 for plural.
    """
    values = dict(wanted)
    words = [before] if before else []
    words += [random.choice(ADJECTIVES[values[key]]) for key in ("size", "material") if key in values]
    words += [values["color"]] if "color" in values else []
    return " ".join([*words, random.choice(NOUNS[values.get("shape")])[number]])


def swapped(ways: dict[str, tuple[str, ...]], side: str, random: Random) -> str:
    """One way of saying a side; those for right are those for left with the word swapped."""
    if side == "right":
        return random.choice(ways["left"]).replace("left", "right")
    return random.choice(ways[side])


def phrase(program: Program, random: Random, inner: bool = False) -> str:
    """A program in words.

    An `inner` one, which says where another solid is, always has "that is" before what hangs on its
    noun, or else "the ball left of the cube on the far right" could mean two things.
    """
    kind, *rest = program
    that_is = random.choice(("that is ", "which is ") if inner else ("", "", "that is ", "which is "))
    match kind, rest:
        case "only", [wanted]:
            return "the " + name(wanted, random)
        case "extreme", [side, wanted]:
            where_to = swapped(EXTREMES, side, random)
            return where_to.replace("{} ", "{} " + that_is * inner).format(name(wanted, random))
        case "zone", [where, wanted]:
            where_to = swapped(ZONES, where, random)
            return where_to.replace("{} ", "{} " + that_is * inner).format(name(wanted, random))
        case "order", [rank, side, wanted]:
            thing = name(wanted, random)
            if side in ("front", "back"):
                return f"the {ORDINALS[rank]} {thing} from the {side}"
            if random.random() < 0.5:
                return f"the {ORDINALS[rank]} {thing} from the {side}"
            return f"the {thing} that is {ORDINALS[rank]} from the {side}"
        case "superlative", [which, wanted]:
            return (
                "the "
                + name(wanted, random, before=random.choice(SUPERLATIVES[which]))
                + random.choice(("", " of all", " in the picture", " here"))
            )
        case "except", [wanted, attribute, value]:
            article = random.choice(("the", "the", "the only", "the one"))
            what = (
                name(((attribute, value),), random)
                if attribute == "shape"
                else random.choice(ADJECTIVES.get(value, (value,)))
            )
            what = f"a {what}" if attribute == "shape" else what
            link = random.choice(("that is not", "that isn't", "which is not", "that is anything but"))
            return f"{article} {name(wanted, random)} {link} {what}"
        case "relation", [relation, wanted, anchor]:
            link = swapped(RELATIONS, relation, random)
            return f"the {name(wanted, random)} {that_is}{link} {phrase(anchor, random, inner=True)}"
        case "nearest", [wanted, anchor]:
            link = random.choice(("closest to", "nearest to"))
            return f"the {name(wanted, random)} {that_is}{link} {phrase(anchor, random, inner=True)}"
        case "between", [wanted, one, two]:
            ends = f"{phrase(one, random, inner=True)} and {phrase(two, random, inner=True)}"
            return f"the {name(wanted, random)} {that_is}between {ends}"
        case "between pair", [wanted, pair]:
            two = name(pair, random, number=1, before="two")
            return f"the {name(wanted, random)} {that_is}between the {two}"
    raise ValueError(f"expected a program, got {program}")
