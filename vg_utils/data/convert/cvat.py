"""CVAT for images 1.1: an XML file with an element an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from vg_utils.data.convert.items import Item, bounds, files_of, find_image, pairs, split_named, texts_of
from vg_utils.data.examples import DataError, Report
from vg_utils.data.records import read_bytes

SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "mask")


def read_cvat(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """The shapes of a file, or of those in a folder; an image's `subset` is its split.

    A phrase stands in an attribute of the shape (`caption`, `expression`, `phrase`, ...).
    """
    for file in files_of(source, (".xml",), "CVAT's .xml file"):
        try:
            top = ElementTree.fromstring(read_bytes(file, "CVAT's .xml file"))
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"{file}: expected CVAT's XML, got: {error}") from error
        if top.find("track") is not None:
            raise DataError(
                f"{file}: expected 'CVAT for images 1.1', got 'CVAT for video': export it as that"
            )
        folders = [images] if images else [file.parent / "images", file.parent]
        for image in top.iter("image"):
            yield from _of_image(image, file, folders)


def _of_image(image: Element, file: Path, folders: list[Path]) -> Iterator[Item]:
    name, subset = image.get("name", ""), image.get("subset", "")
    path = find_image(name, [*(folder / subset for folder in folders), *folders])
    width, height = image.get("width", ""), image.get("height", "")
    size_wh = (int(width), int(height)) if width.isdecimal() and height.isdecimal() else None
    for number, shape in enumerate((part for part in image if part.tag in SHAPES), start=1):
        said = {(one.get("name") or "").lower(): one.text for one in shape.iter("attribute")}
        yield Item(
            f"{file}, image {name}, {shape.tag} {number}",
            path,
            _corners(shape),
            texts_of(said),
            shape.get("label", ""),
            split_named(subset),
            size_wh,
        )


def _corners(shape: Element) -> tuple[float, float, float, float] | None:
    """The box of a shape; None where it has no numbers, or another kind of outline."""

    def numbers(*names: str) -> list[float]:
        return [float(shape.get(name, "")) for name in names]

    try:
        if shape.tag == "box":
            x1, y1, x2, y2 = numbers("xtl", "ytl", "xbr", "ybr")
            return _turned((x1, y1, x2, y2), float(shape.get("rotation", 0)))
        if shape.tag == "ellipse":
            x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
            return x - rx, y - ry, x + rx, y + ry
        if shape.tag == "mask":
            left, top, width, height = numbers("left", "top", "width", "height")
            return left, top, left + width, top + height
        return bounds(pairs([float(n) for n in shape.get("points", "").replace(";", ",").split(",")]))
    except ValueError:
        return None


def _turned(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The upright box around a box that was turned about its centre."""
    x1, y1, x2, y2 = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    half_x, half_y = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return (x - half_x, y - half_y, x + half_x, y + half_y) if degrees else box
