"""COCO's boxes (x, y, width, height) as corners: the one place where annotations change format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vg_utils.data.examples import LARGEST_PX, BadRecord, Box, fit_box
from vg_utils.data.records import BOX, Record, are_four_numbers, shown


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
    """As `corners` of each `bbox` in an image of that size, in one loop, which is many times as fast.

    Returns:
        None for those that have a fault, or have to be cut to the image: `corners` says which.
    """
    boxes = [annotation.get("bbox") for annotation in annotations]
    unknown: list[Box | None] = [None] * len(boxes)
    if not are_four_numbers(boxes):
        return unknown
    found: list[Box | None] = []
    try:
        for (x, y, box_width, box_height), (width, height) in zip(boxes, sizes_wh, strict=True):
            x1, y1 = x + 0.0, y + 0.0  # floats, whatever came
            x2, y2 = x1 + box_width, y1 + box_height
            inside = 0 <= x1 < x2 <= width <= LARGEST_PX and 0 <= y1 < y2 <= height <= LARGEST_PX
            found.append((x1, y1, x2, y2) if inside and (x2 > 1 or y2 > 1) else None)
    except OverflowError:  # integers of hundreds of digits
        return unknown
    return found
