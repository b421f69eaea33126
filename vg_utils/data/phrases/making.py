"""From one image with boxes to its phrases, each proved on the boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np

from vg_utils.data.phrases import captions, lexicon
from vg_utils.data.phrases.absent import absent_phrases
from vg_utils.data.phrases.caption_words import words_of
from vg_utils.data.phrases.colors import measure, read_pixels
from vg_utils.data.phrases.families import propose
from vg_utils.data.phrases.meaning import Meaning, execute, only_one
from vg_utils.data.phrases.objects import Objects
from vg_utils.data.phrases.people import prove_people
from vg_utils.data.phrases.told import tell
from vg_utils.data.phrases.wording import say

MEANT_AREA, LEAST_AREA, LEAST_SIDE = 0.01, 0.003, 0.03  # shares of the image: below, few and no phrases
PER_OBJECT, PER_PERSON, PER_SMALL, PER_PICTURE = 14, 14, 2, 64
CAPTIONS = 14  # phrases of an object that are taken from captions
LEAST_PHRASES, MOST_WAYS = 6, 4  # of an object, if it has them; in which one meaning is put into words
CROWDED = 10  # so many of a class: data sets stop listing them one by one
PRESENT_PER_ABSENT = 2.5


@dataclass(frozen=True)
class Picture:
    """What phrases of an image are made from; plain data, so that it travels between processes.

    Attributes:
        image_id: of the image.
        path: the file, or None where no colours are wanted.
        size_wh: in pixels.
        boxes_xywh: corner and size of each object in pixels, as COCO has them.
        categories: their class names.
        crowd: whether each box holds many.
        captions: sentences about the image.
        known: the classes that its data set annotates; None for all.
    """

    image_id: int
    path: Path | None
    size_wh: tuple[int, int]
    boxes_xywh: Sequence[Sequence[float]]
    categories: Sequence[str]
    crowd: Sequence[bool] = ()
    captions: Sequence[str] = ()
    known: frozenset[str] | None = None

    @cached_property
    def words(self) -> list[list[str]]:
        """Words of each caption."""
        return [words_of(caption) for caption in self.captions]


@dataclass
class Phrase:
    """A phrase, its family and its meaning; `object` is the index of what it is about, None if of nothing."""

    text: str
    family: str
    meaning: Meaning
    object: int | None = None


@dataclass
class Made:
    """The phrases of an image, and how many proposals were left out, by family and reason."""

    image_id: int
    phrases: list[Phrase] = field(default_factory=list)
    absent: list[Phrase] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)


def make(picture: Picture, seed: int, weights: Mapping[str, float]) -> Made:
    """All phrases of an image.

    Args:
        picture: its boxes and captions.
        seed: the same seed gives the same phrases.
        weights: of the classes that absent phrases may name.

    Raises:
        DataError: the image does not decode, or has another size.
    """
    if not picture.boxes_xywh:
        return Made(picture.image_id)
    random = Random(f"phrases/{seed}/{picture.image_id}")
    objects = look_at(picture)
    told = phrases_of_captions(picture.words, objects, random)
    return say_all(picture.image_id, objects, told, captions.mentions(picture.words), random, weights)


def phrases_of_captions(
    words: Sequence[list[str]], objects: Objects, random: Random
) -> list[tuple[int, str, Meaning]]:
    """What captions give: (object, text, meaning) each."""
    return list(captions.phrases(words, objects, random)) if words else []


def say_all(
    image_id: int,
    objects: Objects,
    told: Sequence[tuple[int, str, Meaning]],
    mentioned: set[str],
    random: Random,
    weights: Mapping[str, float],
) -> Made:
    """The phrases of objects, and those that fit none of them.

    Args:
        image_id: of the image.
        objects: all that is known of its objects.
        told: phrases from captions, see `phrases_of_captions`.
        mentioned: words of the captions; what they name is not said to be absent.
        random: the only source of chance.
        weights: of the classes that absent phrases may name.
    """
    made = Made(image_id)
    made.phrases = present(objects, told, random, made.left_out)
    true = [phrase.meaning for phrase in made.phrases if phrase.family != "caption"]
    count = round(len(made.phrases) / PRESENT_PER_ABSENT)
    found = absent_phrases(objects, true, count, random, weights, mentioned)
    made.absent = [Phrase(text, family, meaning) for text, family, meaning in found]
    return made


def look_at(picture: Picture) -> Objects:
    """The image's objects with everything that is known of them."""
    boxes = np.array(picture.boxes_xywh, dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes / (*picture.size_wh, *picture.size_wh), 0, 1)
    crowd = sum(bool(flag) << i for i, flag in enumerate(picture.crowd))
    categories = list(picture.categories)
    objects = Objects(boxes, categories, picture.size_wh[0] / picture.size_wh[1], crowd, known=picture.known)
    if picture.path is not None:
        person = [category == lexicon.PERSON for category in categories]
        colored = [p or category in lexicon.COLORED for p, category in zip(person, categories, strict=True)]
        objects.measured = measure(read_pixels(picture.path, picture.size_wh), boxes, person, colored)
    objects.people = prove_people(picture.words, objects)
    objects.cache.clear()  # words for people were asked before it was known who they are
    objects.told = tell(picture.words, objects)
    return objects


def present(
    objects: Objects, told: Sequence[tuple[int, str, Meaning]], random: Random, left_out: Counter
) -> list[Phrase]:
    """Phrases of the image's objects, at most `PER_PICTURE`, spread over objects and families."""
    kept: dict[int, list[Phrase]] = {i: [] for i in range(len(objects))}
    for i, text, meaning in told:
        if text not in [phrase.text for phrase in kept[i]]:
            kept[i].append(Phrase(text, "caption", meaning, i))
    for i in range(len(objects)):
        limit = room(objects, i, left_out)
        own = kept[i] if limit else []
        random.shuffle(own)
        kept[i] = own[:CAPTIONS] + of_object(objects, i, random, limit, left_out)
    texts = Counter(phrase.text for own in kept.values() for phrase in own)
    order = sorted(kept, key=lambda i: -objects.areas[i])
    found: list[Phrase] = []
    for number in range(
        max(map(len, kept.values()), default=0)
    ):  # in turn, so that no object crowds others out
        for i in order:
            found += [phrase for phrase in kept[i][number : number + 1] if texts[phrase.text] == 1]
    left_out["more than the image's share"] += max(0, len(found) - PER_PICTURE)
    return found[:PER_PICTURE]


def room(objects: Objects, i: int, left_out: Counter) -> int:
    """How many phrases an object may have."""
    category, area = objects.categories[i], objects.areas[i]
    if objects.crowd >> i & 1:
        left_out["object: many in one box"] += 1
        return 0
    if area < LEAST_AREA or min(objects.width[i], objects.height[i]) < LEAST_SIDE:
        left_out["object: too small"] += 1
        return 0
    if objects.of_class[category].bit_count() >= CROWDED:
        left_out["object: one of very many"] += 1
        return PER_SMALL if area > MEANT_AREA else 0
    if area < MEANT_AREA:
        return PER_SMALL
    return PER_PERSON if category == lexicon.PERSON else PER_OBJECT


def of_object(objects: Objects, i: int, random: Random, limit: int, left_out: Counter) -> list[Phrase]:
    """Up to `limit` proved phrases of an object, of as many families as it has."""
    by_family: dict[str, list[Meaning]] = {}
    for family, meanings in propose(objects, i, random).items() if limit else ():
        for meaning in meanings:
            if only_one(meaning, objects) == i:
                by_family.setdefault(family, []).append(meaning)
            else:
                left_out[f"{family}: {why_not(meaning, objects, i)}"] += 1
    proved = sum(map(len, by_family.values()))
    ways = min(MOST_WAYS, max(2, LEAST_PHRASES // max(1, proved)))
    for meanings in by_family.values():  # said in other ways too, if there is room after all others
        meanings[:0] = [meaning for meaning in meanings for _ in range(ways - 1)]
    found: list[Phrase] = []
    texts: set[str] = set()
    families = list(by_family)
    while families and len(found) < limit:
        random.shuffle(families)
        for family in list(families):
            meaning = by_family[family].pop()
            if not by_family[family]:
                families.remove(family)
            if len(found) < limit and (text := say(meaning, random)) not in texts:
                texts.add(text)
                found.append(Phrase(text, family, meaning, i))
    return found


def why_not(meaning: Meaning, objects: Objects, i: int) -> str:
    """Why a meaning was not said of an object."""
    sure, maybe = execute(meaning, objects)
    if not sure >> i & 1:
        return "does not hold beyond doubt"
    return "another may be meant" if maybe != 1 << i else "another is meant"
