"""COCO's boxes (x, y, width, height) as corners: the one place where annotations change format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from vg_utils.data.examples import LARGEST_PX, BadRecord, Box, fit_box
from vg_utils.data.records import BOX, Record, shown


def corners(bbox_xywh: Any, size_wh: tuple[int, int], where: str) -> Box:
    """COCO's box (x, y, width, height) as corners (x1, y1, x2, y2), all in pixels, cut to the image.

    Raises:
        BadRecord: not four finite numbers, or as `examples.fit_box` says.
    """
    if not BOX.fits(bbox_xywh):
        raise BadRecord("not a box", f"{where}: expected x, y, width, height, got {shown(bbox_xywh)}")
    x, y, width, height = bbox_xywh
    return fit_box((x, y, x + width, y + height), size_wh, where)


def corners_of_many(annotations: Sequence[Record], sizes_wh: Sequence[tuple[int, int]]) -> list[Box | None]:
    """As `corners` of each `bbox` in an image of that size, checked by the column.

    Returns:
        None for those that have a fault, or have to be cut to the image: `corners` says which.
    """
    boxes = [annotation.get("bbox") for annotation in annotations]
    unknown: list[Box | None] = [None] * len(boxes)
    if set(map(type, boxes)) != {list} or set(map(len, boxes)) != {4}:
        return unknown
    if not set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        return unknown
    try:
        xywh, sides = _array(boxes), _array(sizes_wh)
    except OverflowError:  # integers of hundreds of digits
        return unknown
    first, last = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    fine = (np.abs(xywh) <= LARGEST_PX).all(axis=1)
    fine &= ((first >= 0) & (first < last) & (last <= sides)).all(axis=1) & (last > 1).any(axis=1)
    xyxy = zip(*first.T.tolist(), *last.T.tolist(), strict=True)  # by the column: tuples at once, no lists
    return [box if is_fine else None for box, is_fine in zip(xyxy, fine.tolist(), strict=True)]


def _array(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """float64 (N, columns), in half of the time that `np.array` takes, which looks at each row."""
    return np.fromiter(chain.from_iterable(rows), float).reshape(len(rows), -1)
