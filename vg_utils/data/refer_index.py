"""`instances.json` ready to be asked: images, annotations and categories by id, and boxes as corners."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vg_utils.data.coco_boxes import corners_of_many
from vg_utils.data.examples import BadRecord, Box, Report
from vg_utils.data.records import TEXT, WHOLE, Fields, Record, checked

ANNOTATION = {"id": WHOLE, "image_id": WHOLE, "category_id": WHOLE}  # its box is checked where it is needed
CATEGORY = {"id": WHOLE, "name": TEXT}
IMAGE, OF_IMAGE = {"id": WHOLE}, {"file_name": TEXT}


@dataclass(frozen=True)
class Index:
    """The annotations by id and by image: every look-up below is one step."""

    images: dict[int, Record]
    annotations: dict[int, Record]
    of_image: dict[int, list[Record]]
    categories: dict[int, str]
    referred: set[int]
    lists_all_objects: bool


def build_index(instances: Record, refs: Sequence[Record], strict: bool, report: Report) -> Index:
    """The content of `instances.json`; bad records are left out and counted, or (strict) an error."""

    def by_id(kind: str, fields: Fields, optional: Fields | None = None) -> dict[int, Record]:
        where = f"instances.json, {kind}"
        records = checked(instances[kind], fields, where, strict, report, optional)
        return {r["id"]: r for r in without_duplicates(records, "id", where, strict, report)}

    annotations = by_id("annotations", ANNOTATION)
    of_image: dict[int, list[Record]] = defaultdict(list)
    for annotation in annotations.values():
        of_image[annotation["image_id"]].append(annotation)
    categories = {i: record["name"] for i, record in by_id("categories", CATEGORY).items()}
    # Files made from the hub, or cut to a few images, list only objects that somebody refers to. Counting
    # their neighbours would call a crowded image empty, so such files leave the number of distractors open.
    info = instances.get("info")
    referred = {ref["ann_id"] for ref in refs}
    lists_all = info.get("lists_all_objects") if isinstance(info, dict) else None
    if not isinstance(lists_all, bool):
        lists_all = any(i not in referred for i in annotations)
    images = by_id("images", IMAGE, OF_IMAGE)
    return Index(images, annotations, of_image, categories, referred, lists_all)


def without_duplicates(
    records: Sequence[Record], key: str, where: str, strict: bool, report: Report
) -> Sequence[Record]:
    """The records whose `key` was not seen before."""
    if len({record[key] for record in records}) == len(records):
        return records
    seen, kept = set(), []
    for record in records:
        if record[key] in seen:
            report.handle(BadRecord(f"duplicate {key}", f"{where}: {key} {record[key]} comes twice"), strict)
            continue
        seen.add(record[key])
        kept.append(record)
    return kept


def size_of(record: Record) -> tuple[int, int] | None:
    """Width and height of an image in pixels; None where its record has none."""
    width, height = record.get("width"), record.get("height")
    if WHOLE.fits(width) and width > 0 and WHOLE.fits(height) and height > 0:
        return width, height
    return None


def plain_boxes(index: Index, image_ids: Iterable[int]) -> dict[int, Box]:
    """The boxes of the images' annotations that lie within them: nearly all, built at once."""
    annotations: list[Record] = []
    sizes_wh: list[tuple[int, int]] = []
    for image_id in image_ids:
        if size_wh := size_of(index.images.get(image_id, {})):
            own = index.of_image.get(image_id, [])
            annotations += own
            sizes_wh += [size_wh] * len(own)
    boxes = zip(annotations, corners_of_many(annotations, sizes_wh), strict=True)
    return {annotation["id"]: box for annotation, box in boxes if box is not None}
