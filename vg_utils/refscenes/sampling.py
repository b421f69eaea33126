"""Samples the scenes of RefScenes: which solids, where, under which camera and lamp, on what ground.

Plain Python on one seeded `random.Random`, so that a scene depends on its seed alone. Scenes are crowded
and repeat themselves on purpose: a phrase is only needed where several things look alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from vg_utils.refscenes.expressions import write_expression
from vg_utils.refscenes.grammar import ATTRIBUTES, Facts
from vg_utils.refscenes.raycast import HALF_WIDTH, HEIGHT, SHAPES, Scene, Solid, stack_scenes
from vg_utils.refscenes.render import look, visible_boxes
from vg_utils.refscenes.surfaces import GROUNDS

COLORS = {  # sRGB, 0 to 255
    "red": (205, 32, 36),
    "orange": (245, 125, 20),
    "yellow": (246, 212, 40),
    "green": (46, 150, 60),
    "cyan": (50, 205, 215),
    "blue": (36, 78, 205),
    "purple": (130, 50, 170),
    "gray": (128, 130, 134),
}
MATERIALS = ("matte", "metal")
SIZES = {"small": 0.74, "medium": 1.10, "large": 1.62}  # radius in world units

# Pairs that no image of train, val or test holds, and that every referred object of `novel` is one of. Each
# colour is held out once and each shape twice, so all words occur in training.
HELD_OUT = frozenset(
    {
        ("red", "cone"),
        ("orange", "sphere"),
        ("yellow", "cylinder"),
        ("green", "cube"),
        ("cyan", "cone"),
        ("blue", "sphere"),
        ("purple", "cylinder"),
        ("gray", "cube"),
    }
)

# Pairs of ground colours and the backdrop: muted and of middling lightness, so that every solid stands out.
PALETTES = (
    ((158, 138, 112), (128, 108, 86), (214, 205, 192)),  # sand
    ((136, 100, 72), (108, 78, 56), (205, 190, 172)),  # walnut
    ((118, 130, 112), (94, 108, 92), (196, 206, 194)),  # sage
    ((112, 124, 140), (88, 100, 118), (190, 202, 214)),  # slate
    ((148, 122, 118), (122, 96, 94), (212, 196, 190)),  # dusty rose
    ((170, 156, 132), (140, 126, 104), (220, 214, 200)),  # linen
    ((98, 112, 116), (76, 90, 96), (182, 194, 198)),  # sea slate
    ((130, 112, 136), (106, 90, 114), (202, 190, 208)),  # heather
    ((160, 128, 96), (118, 90, 68), (216, 202, 184)),  # oak
    ((104, 120, 120), (128, 142, 140), (190, 200, 198)),  # verdigris
)
FACTS_SIZE = 96  # what can be seen and told is measured on images of this size, whatever size is drawn
MIN_SEEN = 0.42  # share of its silhouette that must be visible of every solid
MIN_AREA, MAX_AREA = 0.019, 0.34  # of its box, as a share of the image
MIN_SOLIDS, MAX_SOLIDS = 3, 8
GAP = 0.12  # world units between neighbours at least
FRAME = 1.04  # how far solids may reach; beyond 1 the edge of the image cuts them a little
MAX_COVER = (
    0.5  # share of a solid's rectangle that a nearer one may cover; what can really be seen is measured later
)

# Referred solids of an image: how many, and how often. Val, test and novel are as RefCOCOg is; an image of
# train has more to learn from, and costs no more to draw.
REFS = {"train": {2: 0.05, 3: 0.25, 4: 0.70}}
REFS_ELSEWHERE = {1: 0.2, 2: 0.8}


@dataclass(frozen=True, slots=True)
class Plan:
    """A scene that will be drawn, what can be told about it, and what is said.

    `refs` holds pairs of the index of a solid and its sentences (family, program, text).
    """

    scene: Scene
    facts: Facts
    refs: list[tuple[int, list[tuple[str, tuple, str]]]]


def linear(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """sRGB in 0 to 255 as linear light in [0, 1]."""
    return tuple((value / 255) ** 2.2 for value in rgb)


def sample_scene(random: Random, novel: bool = False) -> Scene | None:
    """One scene, or None where the solids found no room (try again with the same generator).

    Args:
        random: the only source of chance.
        novel: at least two solids are of `HELD_OUT` pairs; otherwise none is.
    """
    wanted = random.choices(range(3, 10), (8, 14, 18, 18, 16, 14, 12))[0]
    distance = 13.1 + 0.5 * wanted + random.uniform(-0.9, 0.9)
    camera = (math.radians(random.uniform(19, 36)), distance, random.uniform(-0.9, 1.1), 0.235)
    looks = sample_looks(random, wanted, novel)
    solids: list[Solid] = []
    placed: list[tuple[float, float, float, float, float]] = []
    for shape, color, material, size in sorted(
        looks, key=lambda look: -SIZES[look[3]]
    ):  # large ones need room first
        for _ in range(40):
            radius = SIZES[size] * random.uniform(0.95, 1.05)
            yaw = random.uniform(0, math.pi / 2) if shape == "cube" else 0.0
            x, y = 4.9 * away_from_middle(random), 5.0 * away_from_middle(random)
            solid = Solid(shape, color, material, size, linear(COLORS[color]), x, y, radius, yaw)
            rectangle = screen_rectangle(solid, camera)
            if rectangle is not None and fits(solid, rectangle, solids, placed):
                solids.append(solid)
                placed.append(rectangle)
                break
    if len(solids) < MIN_SOLIDS:
        return None
    random.shuffle(solids)
    azimuth, height = random.choice((-1, 1)) * random.uniform(0.6, 1.6), random.uniform(0.7, 1.05)
    lamp = (math.cos(height) * math.sin(azimuth), -math.cos(height) * math.cos(azimuth), math.sin(height))
    kind = random.randrange(len(GROUNDS))
    angle = (
        random.uniform(-0.25, 0.25)
        if GROUNDS[kind] in ("planks", "stripes")
        else random.uniform(0, math.pi / 2)
    )
    angle += random.choice((0.0, math.pi / 2))
    ground = (kind, random.uniform(0.55, 0.95), angle, random.uniform(0, 12), random.uniform(0, 12))
    one, two, behind = (linear(rgb) for rgb in random.choice(PALETTES))
    return Scene(tuple(solids), camera, lamp, ground, random.choice(((one, two), (two, one))), behind)


def away_from_middle(random: Random) -> float:
    """A number in [-1, 1], seldom near 0: else one box in the middle of all images would score well."""
    return random.choice((-1, 1)) * random.random() ** 0.45


def sample_looks(random: Random, count: int, novel: bool) -> list[tuple[str, str, str, str]]:
    """(shape, colour, material, size) of `count` solids: shapes and colours come back, no two are alike."""
    shapes = [*random.sample(SHAPES, random.choice((2, 3, 3))), random.choice(SHAPES)]
    weights = (0.5, 0.3, 0.2, 0.1)[: len(shapes)]
    colors = random.sample(sorted(COLORS), random.choice((2, 3, 3, 4)))
    looks: list[tuple[str, str, str, str]] = []
    for number in range(200):
        shape = random.choices(shapes, weights)[0]
        color = random.choice(colors) if random.random() < 0.85 else random.choice(sorted(COLORS))
        must_hold_out = novel and number < 2 + count // 3
        if must_hold_out:
            color, shape = random.choice(sorted(pair for pair in HELD_OUT if pair[1] == shape))
        elif not novel and (color, shape) in HELD_OUT:
            continue
        if count >= 7:
            size = random.choices(tuple(SIZES), (0.40, 0.38, 0.22))[0]
        else:
            size = random.choices(tuple(SIZES), (0.26, 0.40, 0.34))[0]
        look = (shape, color, random.choice(MATERIALS), size)
        if look not in looks:
            looks.append(look)
        if len(looks) == count:
            break
    return looks


def screen_rectangle(
    solid: Solid, camera: tuple[float, float, float, float]
) -> tuple[float, float, float, float, float] | None:
    """About where it is seen: left, right, bottom, top in [-1, 1] and its depth; None outside the frame."""
    elevation, distance, aim, tangent = camera
    cosine, sine = math.cos(elevation), math.sin(elevation)
    number = SHAPES.index(solid.shape)
    half, height = HALF_WIDTH[number] * solid.radius, HEIGHT[number] * solid.radius
    half *= max(abs(math.cos(solid.yaw)) + abs(math.sin(solid.yaw)), 1.0)
    ahead, above = solid.y - aim + distance * cosine, -distance * sine

    def seen(dy: float, z: float) -> tuple[float, float]:
        depth = ((ahead + dy) * cosine - (above + z) * sine) * tangent
        return depth, ((ahead + dy) * sine + (above + z) * cosine) / depth

    (near, bottom), (_, top), (middle, _) = (
        seen(-half * 0.8, 0.0),
        seen(half * 0.5, height),
        seen(0.0, height / 2),
    )
    left, right = (solid.x - half) / near, (solid.x + half) / near
    if min(left, bottom) < -FRAME or right > FRAME or top > 1:
        return None
    return left, right, bottom, top, middle


def fits(
    solid: Solid,
    rectangle: tuple[float, float, float, float, float],
    solids: list[Solid],
    placed: list[tuple[float, float, float, float, float]],
) -> bool:
    """Whether the solid touches no other and hides, or is hidden by, none of them too much."""
    for other, theirs in zip(solids, placed, strict=True):
        room = (solid.radius + other.radius) * 0.98 + GAP
        if (solid.x - other.x) ** 2 + (solid.y - other.y) ** 2 < room * room:
            return False
        wide = min(rectangle[1], theirs[1]) - max(rectangle[0], theirs[0])
        tall = min(rectangle[3], theirs[3]) - max(rectangle[2], theirs[2])
        if wide > 0 and tall > 0:
            hidden = rectangle if rectangle[4] > theirs[4] else theirs
            if wide * tall > MAX_COVER * (hidden[1] - hidden[0]) * (hidden[3] - hidden[2]):
                return False
    return True


def plan_scenes(seed: str, indices: range, split: str, device: str) -> list[Plan]:
    """Sample scenes until each shows enough of its solids and something can be said about it.

    Args:
        seed: of everything; a scene depends on it and on its own index.
        indices: which scenes.
        split: `train` speaks of more solids than the others; `novel` speaks of solids of `HELD_OUT` pairs
            only, and the others show none.
        device: where to look at them.
    """
    chance = {index: Random(f"{seed}/{index}") for index in indices}
    plans: dict[int, Plan] = {}
    while len(plans) < len(indices):
        scenes: dict[int, Scene] = {}
        for index in chance.keys() - plans.keys():
            while index not in scenes:
                if scene := sample_scene(chance[index], split == "novel"):
                    scenes[index] = scene
        scenes = without_hidden(scenes, device)
        if not scenes:
            continue
        batch = stack_scenes(list(scenes.values()), device)
        boxes, _ = visible_boxes(batch, look(batch, FACTS_SIZE)[0])
        rows = iter((boxes / FACTS_SIZE).tolist())
        for index, scene in scenes.items():
            facts = tell(scene, [next(rows) for _ in scene.solids])
            if refs := refer(facts, chance[index], split):
                plans[index] = Plan(scene, facts, refs)
    return [plans[index] for index in indices]


def without_hidden(scenes: dict[int, Scene], device: str) -> dict[int, Scene]:
    """The scenes without the solids that are too hidden, too small or too large, if enough solids remain.

    Taking one away can only uncover the others, so looking once is enough.
    """
    batch = stack_scenes(list(scenes.values()), device)
    ids, silhouette = look(batch, FACTS_SIZE)
    boxes, pixels = visible_boxes(batch, ids)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) / FACTS_SIZE**2
    good = (pixels >= MIN_SEEN * silhouette) & (area >= MIN_AREA) & (area <= MAX_AREA)
    keep = iter(good.tolist())
    remaining = {}
    for index, scene in scenes.items():
        solids = tuple(solid for solid in scene.solids if next(keep))[:MAX_SOLIDS]
        if len(solids) >= MIN_SOLIDS:
            remaining[index] = replace(scene, solids=solids)
    return remaining


def tell(scene: Scene, boxes_xyxy: list[list[float]]) -> Facts:
    """The facts that expressions are executed on; boxes as shares of the image."""
    return Facts(
        looks=[{name: getattr(solid, name) for name in ATTRIBUTES} for solid in scene.solids],
        x=[(x1 + x2) / 2 for x1, _, x2, _ in boxes_xyxy],
        depth=[solid.y for solid in scene.solids],
        across=[solid.x for solid in scene.solids],
        area=[(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes_xyxy],
    )


def refer(facts: Facts, random: Random, split: str) -> list[tuple[int, list[tuple[str, tuple, str]]]]:
    """Some solids, as many as the split's images have, with one to three sentences each."""
    free = may_refer(facts, split == "novel")
    weights = REFS.get(split, REFS_ELSEWHERE)
    refs = []
    wanted = random.choices(tuple(weights), tuple(weights.values()))[0]
    while free and len(refs) < wanted:
        target = random.choices(tuple(free), tuple(free.values()))[0]
        del free[target]
        sentences: list[tuple[str, tuple, str]] = []
        for _ in range(random.choices((1, 2, 3), (0.15, 0.55, 0.30))[0]):
            used = tuple(family for family, _, _ in sentences)
            if written := write_expression(facts, target, random, avoid=used):
                sentences.append(written)
        if sentences:
            refs.append((target, sentences))
    return refs


def may_refer(facts: Facts, novel: bool) -> dict[int, float]:
    """The solids to speak of, with weights: rather such as have a double of their shape."""
    shapes = [looks["shape"] for looks in facts.looks]
    free = {i: 1.0 if shapes.count(shape) > 1 else 0.7 for i, shape in enumerate(shapes)}
    if novel:
        free = {i: w for i, w in free.items() if (facts.looks[i]["color"], shapes[i]) in HELD_OUT}
    return free
