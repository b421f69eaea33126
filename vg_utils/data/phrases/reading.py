"""Detections and captions in COCO's layout, checked and put together as images."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vg_utils.data.examples import DataError
from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.making import Picture
from vg_utils.data.records import BOX, LIST, TEXT, WHOLE, Kind, Record, checked, read_json, shown
from vg_utils.data.refer_files import ImageFolders, picture_name

SIDE = Kind("a whole number of pixels", lambda value: WHOLE.fits(value) and value > 0)
IDS = Kind("whole numbers", lambda value: LIST.fits(value) and all(map(WHOLE.fits, value)))
YES_OR_NO = Kind("true or false", lambda value: isinstance(value, bool))
IMAGE = {"id": WHOLE, "width": SIDE, "height": SIDE}
OF_IMAGE = {"file_name": TEXT, "all_objects_annotated": YES_OR_NO, "annotated_category_ids": IDS}
CATEGORY = {"id": WHOLE, "name": TEXT}
ANNOTATION = {"id": WHOLE, "image_id": WHOLE, "category_id": WHOLE, "bbox": BOX}
CAPTION = {"image_id": WHOLE, "caption": TEXT}
LEAST_OF_A_SOURCE = 20  # images: fewer with a like name are no data set of their own


def read_captions(path: Path) -> dict[int, list[str]]:
    """Captions by image."""
    found = read_json(path, "COCO's captions as JSON")
    if not isinstance(found, dict) or not isinstance(found.get("annotations"), list):
        raise DataError(f"{path}: expected an object with a list under 'annotations'")
    captions: dict[int, list[str]] = defaultdict(list)
    for record in checked(found["annotations"], CAPTION, f"{path}, annotations"):
        captions[record["image_id"]].append(record["caption"])
    return captions


def read_pictures(records: Record, path: Path, images: Path, captions: dict[int, list[str]]) -> list[Picture]:
    """The images with their objects, by id; raises on the first fault."""
    if not images.is_dir():
        raise DataError(f"{images}: expected the folder of the images, found no such folder")
    fields = {"images": (IMAGE, OF_IMAGE), "categories": (CATEGORY, {}), "annotations": (ANNOTATION, {})}
    for kind, (needed, optional) in fields.items():
        checked(records[kind], needed, f"{path}, {kind}", optional=optional)
    names = {record["id"]: lexicon.canonical(record["name"]) for record in records["categories"]}
    of_image: dict[int, list[Record]] = {record["id"]: [] for record in records["images"]}
    if len(of_image) < len(records["images"]):
        raise DataError(f"{path}: expected each image id once, got some twice")
    ids = set()
    for position, record in enumerate(records["annotations"]):
        where = f"{path}, annotations, entry {position}"
        if record["image_id"] not in of_image or record["category_id"] not in names:
            raise DataError(
                f"{where}: expected the ids of an image and a category of the file, got {shown(record)}"
            )
        if record["id"] in ids:
            raise DataError(f"{where}: expected each annotation id once, got {record['id']} again")
        ids.add(record["id"])
        of_image[record["image_id"]].append(record)
    known = annotated_classes(records["images"], of_image, names)
    pictures, folders = [], ImageFolders([images])
    for record in sorted(records["images"], key=lambda record: record["id"]):
        image_id, where = record["id"], f"{path}, image {record['id']}"
        size_wh = record["width"], record["height"]
        found = folders.find(image_id, record.get("file_name"))
        if found is None:
            name = record.get("file_name", picture_name(image_id))
            raise DataError(f"{where}: expected {name} in {images}, found no such image")
        own = [each for each in of_image[image_id] if has_area(each, size_wh, where)]
        pictures.append(
            Picture(
                image_id,
                found,
                size_wh,
                [each["bbox"] for each in own],
                [names[each["category_id"]] for each in own],
                [bool(each.get("iscrowd")) for each in own],
                captions.get(image_id, ()),
                known[image_id],
            )
        )
    return pictures


def has_area(record: Record, size_wh: tuple[int, int], where: str) -> bool:
    """Whether the box of an annotation has an area; a DataError if it is outside the image."""
    x, y, width, height = record["bbox"]
    inside = x >= -1 and y >= -1 and x + width <= size_wh[0] + 1 and y + height <= size_wh[1] + 1
    if not inside:
        size, box = f"{size_wh[0]}x{size_wh[1]}", shown(record["bbox"])
        raise DataError(f"{where}, annotation {record['id']}: expected a box in the {size} image, got {box}")
    return width >= 1 and height >= 1


def annotated_classes(
    images: Sequence[Record], of_image: dict[int, list[Record]], names: dict[int, str]
) -> dict[int, frozenset[str]]:
    """For each image the classes that somebody looked for in it: only these can be said to be absent.

    A file may mix data sets that annotate different classes. An image may say itself which, in
    `annotated_category_ids`. Else its source counts: the images whose file names are alike up to the number
    ("voc2007_000012.jpg") and that agree on `all_objects_annotated`. The classes of a source are those that
    occur in it. Sources of fewer than 20 images are taken together.
    """
    sources: dict[tuple, list[int]] = defaultdict(list)
    known: dict[int, frozenset[str]] = {}
    for record in images:
        if "annotated_category_ids" in record:
            known[record["id"]] = frozenset(names[i] for i in record["annotated_category_ids"] if i in names)
            continue
        stem = re.sub(r"\d+$", "", Path(record.get("file_name", "")).stem)
        sources[stem, record.get("all_objects_annotated", True)].append(record["id"])
    rest: dict[bool, list[int]] = defaultdict(list)
    for (_, complete), ids in list(sources.items()):
        if len(ids) < LEAST_OF_A_SOURCE:
            rest[complete] += ids
    groups = [ids for ids in sources.values() if len(ids) >= LEAST_OF_A_SOURCE] + list(rest.values())
    for ids in groups:
        classes = frozenset(names[record["category_id"]] for i in ids for record in of_image[i])
        known.update(dict.fromkeys(ids, classes))
    return known


def class_weights(pictures: Iterable[Picture]) -> dict[str, float]:
    """How often absent phrases name a class: by the root of the number of images that show it."""
    counts = Counter(category for picture in pictures for category in set(picture.categories))
    return {category: number**0.6 for category, number in sorted(counts.items())}


def known_weights(weights: dict[str, float], picture: Picture) -> dict[str, float]:
    """Of the classes that the image's data set annotates."""
    return {
        name: weight for name, weight in weights.items() if picture.known is None or name in picture.known
    }
