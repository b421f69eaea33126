"""Dividing images into train, val and test by their names alone, and what splits share."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet


def split_of(name: str, held_out: int) -> str:
    """The split of an image: of a hundred about `held_out` go to test and to val each.

    It is told by the name alone, so that more images, or another seed, move none.
    """
    place = _number(name) % 100
    return "test" if place < held_out else "val" if place < 2 * held_out else "train"


def divide(names: Iterable[str], held_out: int = 10) -> dict[str, str]:
    """A split for each name, see `split_of`; of three names or more at least one in each split."""
    splits = {name: split_of(name, held_out) for name in names}
    for split in ("train", "val", "test") if len(splits) > 2 else ():
        if split not in splits.values():
            (largest, _), *_ = Counter(splits.values()).most_common(1)
            splits[min((name for name in splits if splits[name] == largest), key=_number)] = split
    return splits


def sharing(split: str, images: AbstractSet, others: Mapping[str, AbstractSet]) -> list[str]:
    """A sentence for each of the other splits that has images of this one: scores flatter then."""
    counts = {other: len(images & theirs) for other, theirs in sorted(others.items()) if other != split}
    return [
        f"images that {split} shares with {other}: {number}" for other, number in counts.items() if number
    ]


def _number(name: str) -> int:
    return zlib.crc32(name.encode())
