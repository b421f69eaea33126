"""COCO's instances, with a phrase for each annotation or without, and Roboflow's export of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vg_utils.data.convert.items import Item, corners_of, files_of, find_image, split_named, texts_of
from vg_utils.data.examples import Report
from vg_utils.data.records import TEXT, WHOLE, Fields, Kind, Record, checked
from vg_utils.data.refer_files import read_instances

ROBOFLOW = "_annotations.coco.json"
IMAGE, ANNOTATION = {"id": WHOLE, "file_name": TEXT}, {"id": WHOLE, "image_id": WHOLE}
CATEGORY = {"id": WHOLE, "name": TEXT}
CLASS = Kind("a whole number or null", lambda value: value is None or WHOLE.fits(value))


def read_coco(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """The annotations of a file, or of those in a folder, which the names of files and folders split.

    A phrase stands in the annotation (`expression`, `caption`, `phrase`, `sentences`, ...) or among its
    `attributes`, where CVAT puts it.
    """
    for file in _files(source):
        place = file.relative_to(source) if source.is_dir() else file.name
        yield from _of_file(file, images, split_named(str(place)), report)


def _files(source: Path) -> list[Path]:
    """Roboflow's files; else COCO's `instances*.json`, beside which captions may lie; else all."""
    files = files_of(source, (".json",), "a .json file of COCO's instances")
    named = [file for file in files if file.name == ROBOFLOW]
    return named or [file for file in files if file.name.startswith("instances")] or files


def _of_file(file: Path, images: Path | None, split: str | None, report: Report) -> Iterator[Item]:
    content = read_instances(file)

    def records(part: str, fields: Fields, optional: Fields | None = None) -> list[Record]:
        return checked(content[part], fields, f"{file}, {part}", False, report, optional)

    of_id = {record["id"]: record for record in records("images", IMAGE)}
    names = {record["id"]: record["name"] for record in records("categories", CATEGORY)}
    folders = [images] if images else _folders(file)
    paths = {id_: find_image(record["file_name"], folders) for id_, record in of_id.items()}
    for annotation in records("annotations", ANNOTATION, {"category_id": CLASS}):
        where, image_id = f"{file}, annotation {annotation['id']}", annotation["image_id"]
        record = of_id.get(image_id, {})
        yield Item(
            where,
            paths.get(image_id) or folders[0] / f"image {image_id}",
            corners_of(annotation.get("bbox")),
            texts_of(annotation) or texts_of(_dict(annotation.get("attributes"))),
            names.get(annotation.get("category_id"), ""),
            split_named(str(record.get("split", ""))) or split,
            _size(record),
            bool(annotation.get("iscrowd")),
        )


def _folders(file: Path) -> list[Path]:
    """Where the images of a file lie: beside it, or beside its folder `annotations`, as COCO has them."""
    places = [file.parent, file.parent / "images", file.parent.parent / "images", file.parent.parent]
    named = file.stem.rpartition("_")[2]  # instances_val2017.json -> val2017/
    return [*places, *(place / named for place in places)]


def _size(record: Record) -> tuple[int, int] | None:
    size_wh = record.get("width"), record.get("height")
    return size_wh if all(map(WHOLE.fits, size_wh)) else None


def _dict(value: Any) -> Record:
    return value if isinstance(value, dict) else {}
