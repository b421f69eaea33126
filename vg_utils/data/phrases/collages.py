"""Collages: two images side by side or one above the other, with phrases that tell their objects apart.

A caption says what one object of its class does, but an image with one object of a class does not ask for
it: the name is enough. Beside another image with an object of that class, only what is said tells which is
meant, as in RefCOCOg, where each image shows two to four of the class that is asked for (Mao et al. 2016,
section 3). Names, places, order, sizes and colours are proved on the boxes of both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from vg_utils.data.images import open_image, to_rgb
from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.caption_words import ADJECTIVES, COLORS, listed
from vg_utils.data.phrases.captions import CLOTHES, mentions
from vg_utils.data.phrases.colors import Measured
from vg_utils.data.phrases.making import Made, Picture, look_at, phrases_of_captions, say_all
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.told import POSTURES, SMALL_WORDS
from vg_utils.files import write_atomically

ALIKE = 0.75  # of the collages: both images have captions about the same class
PREFIX, QUALITY = "collage_", 92  # of the names of the JPEG files, and of the files
VAGUE = (  # words that may be true of anything, or that captions leave out
    ADJECTIVES
    | COLORS
    | CLOTHES
    | SMALL_WORDS
    | POSTURES
    | listed(
        """
        area carrying front he her his holding inside looking next one other outside people person posed
        posing she side that their there they this top two wearing which while who
        """
    )
)


@dataclass(frozen=True)
class Collage:
    """Two images in one.

    Attributes:
        image_id: of the collage.
        parts: the two images, the upper or left one first.
        below: whether the second lies below the first, else to its right.
    """

    image_id: int
    parts: tuple[Picture, Picture]
    below: bool

    @property
    def file_name(self) -> str:
        """Of its image."""
        return f"{PREFIX}{self.image_id:012d}.jpg"

    @property
    def sizes_wh(self) -> list[tuple[int, int]]:
        """Of the parts in the collage, in pixels: as wide (high) as the narrower (lower) one is."""
        side = min(part.size_wh[0 if self.below else 1] for part in self.parts)
        sizes = []
        for width, height in (part.size_wh for part in self.parts):
            scale = side / (width if self.below else height)
            sizes.append((side, round(height * scale)) if self.below else (round(width * scale), side))
        return sizes

    @property
    def corners_xy(self) -> list[tuple[int, int]]:
        """Of the parts in the collage."""
        width, height = self.sizes_wh[0]
        return [(0, 0), (0, height) if self.below else (width, 0)]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the collage."""
        (x, y), (width, height) = self.corners_xy[1], self.sizes_wh[1]
        return x + width, y + height

    @property
    def boxes_xywh(self) -> list[list[float]]:
        """Of all objects, those of the first part first, in pixels of the collage."""
        found = []
        for part, (x, y), size in zip(self.parts, self.corners_xy, self.sizes_wh, strict=True):
            by = [size[0] / part.size_wh[0], size[1] / part.size_wh[1]]
            found += [
                [b[0] * by[0] + x, b[1] * by[1] + y, b[2] * by[0], b[3] * by[1]] for b in part.boxes_xywh
            ]
        return found

    def write(self, path: Path) -> None:
        """Its image file."""
        sheet = Image.new("RGB", self.size_wh)
        for part, corner, size in zip(self.parts, self.corners_xy, self.sizes_wh, strict=True):
            with open_image(part.path) as image:
                sheet.paste(to_rgb(image).resize(size, Image.Resampling.LANCZOS), corner)
        write_atomically(path, lambda temporary: sheet.save(temporary, "JPEG", quality=QUALITY))


def pair_up(
    pictures: Sequence[Picture], made: Sequence[Made], count: int, seed: int, first_id: int
) -> Iterator[Collage]:
    """So many collages of images that have captions about one object; if none have, of any with phrases.

    Args:
        pictures, made: the images and their phrases, in the same order.
        count: how many.
        seed: of everything.
        first_id: image id of the first collage.
    """
    random = Random(f"collages/{seed}")
    of_class: dict[str, list[int]] = defaultdict(list)
    told = any(phrase.family == "caption" for each in made for phrase in each.phrases)
    for number, (picture, each) in enumerate(zip(pictures, made, strict=True)):
        objects = {phrase.object for phrase in each.phrases if phrase.family == "caption" or not told}
        for category in sorted({picture.categories[i] for i in objects}):
            of_class[category].append(number)
    classes = [category for category, numbers in of_class.items() if len(numbers) > 1]
    weights = [len(of_class[category]) ** 0.5 for category in classes]
    for number in range(count if classes else 0):
        (category,) = random.choices(classes, weights)
        one, other = random.sample(of_class[category], 2)
        if random.random() > ALIKE:
            other = random.randrange(len(pictures))
        parts = pictures[one], pictures[other]
        if one == other or not all(part.boxes_xywh for part in parts):
            continue
        parts = parts if random.random() < 0.5 else parts[::-1]
        yield Collage(first_id + number, parts, below=nearer_to_square(parts))


def nearer_to_square(parts: tuple[Picture, Picture]) -> bool:
    """Whether one below the other is nearer to a square than one beside the other."""
    shapes = [Collage(0, parts, below).size_wh for below in (True, False)]
    return max(shapes[0]) / min(shapes[0]) <= max(shapes[1]) / min(shapes[1])


def make_collage(collage: Collage, seed: int, weights: dict[str, float]) -> Made:
    """All phrases of a collage, see `making.make`."""
    random = Random(f"phrases/{seed}/{collage.image_id}")
    words, halves = [part.words for part in collage.parts], [look_at(part) for part in collage.parts]
    objects = together(collage, halves)
    told, first = [], 0
    for k, (half, said) in enumerate(zip(halves, words, strict=True)):
        for i, text, meaning in phrases_of_captions(said, half, random):
            if tells_apart(text, half.categories[i], halves[1 - k], words[1 - k]):
                told.append((first + i, text, meaning))
        first += len(half)
    return say_all(collage.image_id, objects, told, mentions([*words[0], *words[1]]), random, weights)


def together(collage: Collage, halves: Sequence[Objects]) -> Objects:
    """The objects of both parts, where they lie in the collage."""
    one, other = halves
    boxes = np.array(collage.boxes_xywh, dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    width, height = collage.size_wh
    known = [half.known for half in halves if half.known is not None]
    shift = len(one)

    def joined(sets: dict[str, int], others: dict[str, int]) -> dict[str, int]:
        return {key: sets.get(key, 0) | others.get(key, 0) << shift for key in {**sets, **others}}

    objects = Objects(
        np.clip(boxes / (width, height, width, height), 0, 1),
        [*one.categories, *other.categories],
        width / height,
        one.crowd | other.crowd << shift,
        known=frozenset.intersection(*known) if known else None,
        people=joined(one.people, other.people),
        told=joined(one.told, other.told),
    )
    if one.measured and other.measured:
        a, b = one.measured, other.measured
        objects.measured = Measured(
            {part: [*colors, *b.sure[part]] for part, colors in a.sure.items()},
            {part: [*colors, *b.maybe[part]] for part, colors in a.maybe.items()},
        )
    return objects


def tells_apart(text: str, category: str, others: Objects, captions: Sequence[list[str]]) -> bool:
    """Whether a caption about an object of the class can mean none of the other part's objects.

    Either the other part has none of the class, or its own captions and classes have nothing of what some
    word of the text says, a word that says more than looks, clothes and posture.
    """
    mentioned, own = mentions(captions), lexicon.mentions_of(category)
    looked_for = others.known is None or category in others.known
    if looked_for and lexicon.confused_with(category).isdisjoint(others.categories):
        return own.isdisjoint(mentioned)
    named = {lexicon.class_of_word(word) or word for word in mentioned}.union(mentioned, others.categories)
    said = [word for word in text.replace(",", "").split() if word not in VAGUE and word not in own]
    return bool(captions) and any(
        word not in named and (lexicon.class_of_word(word) or word) not in named for word in said
    )
