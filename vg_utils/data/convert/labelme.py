"""labelme's JSON files, one an image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from math import dist
from pathlib import Path

from vg_utils.data.convert.items import Item, bounds, files_of, find_image, split_named, texts_of
from vg_utils.data.examples import BadRecord, DataError, Report
from vg_utils.data.records import LIST, TEXT, WHOLE, Kind, Record, check, checked, read_json

POINT = Kind("a point", lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)))
POINTS = Kind("a list of points", lambda v: isinstance(v, list) and len(v) > 1 and all(map(POINT.fits, v)))
FILE, OF_FILE = {"shapes": LIST, "imagePath": TEXT}, {"imageWidth": WHOLE, "imageHeight": WHOLE}
SHAPE = {"label": TEXT, "points": POINTS}


def read_labelme(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """The shapes of a file, or of all in a folder and below, which the names of its folders split.

    A shape's `description` is its phrase; without any, its label is its class. Shapes of one label and one
    `group_id` are parts of one object.
    """
    for file in files_of(source, (".json",), "labelme's .json files"):
        try:
            record = read_json(file, "labelme's JSON")
            check(record, FILE, str(file), OF_FILE)
        except BadRecord as error:
            report.add(error)
            continue
        except DataError as error:
            report.add(BadRecord("not JSON", str(error)))
            continue
        image = find_image(record["imagePath"], [images or file.parent, file.parent])
        size_wh = record.get("imageWidth"), record.get("imageHeight")
        split = split_named(str(file.parent.relative_to(source))) if source.is_dir() else None
        shapes = checked(record["shapes"], SHAPE, f"{file}, shapes", False, report)
        for number, parts in enumerate(_objects(shapes), start=1):
            yield Item(
                f"{file}, object {number}",
                image,
                bounds(point for part in parts for point in _outline(part)),
                tuple(text for part in parts for text in texts_of({"text": part.get("description")})),
                parts[0]["label"],
                split,
                size_wh if all(size_wh) else None,
            )


def _objects(shapes: list[Record]) -> list[list[Record]]:
    """The shapes, those of one label and group together."""
    alone = count()
    objects: dict[tuple, list[Record]] = {}
    for shape in shapes:
        group = shape.get("group_id")
        key = ("alone", next(alone)) if group is None else (shape["label"], str(group))
        objects.setdefault(key, []).append(shape)
    return list(objects.values())


def _outline(shape: Record) -> list[list[float]]:
    """Points whose box is that of the shape; of a circle labelme keeps the centre and a point on it."""
    if shape.get("shape_type") != "circle":
        return shape["points"]
    (x, y), edge = shape["points"][:2]
    radius = dist((x, y), edge)
    return [[x - radius, y - radius], [x + radius, y + radius]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
