"""Ref-L4's review of RefCOCO, RefCOCO+ and RefCOCOg: which of their sentences are wrong (Chen et al., 2024).

`refcocog_val_reviewed.json` and its like have the layout that MDETR converts these data sets to: for each
sentence a record under "images", with the file's name and the sentence as `caption`, and one of the same id
under "annotations", with the box and here a `caption_quality`, 0 where people found the label wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vg_utils.data.examples import BOX_TOLERANCE_PX, Box, DataError, GroundingExample
from vg_utils.data.records import BOX, TEXT, WHOLE, Kind, Record, checked, many_objects, read_json
from vg_utils.data.text import clean_text

_IMAGE_ID = re.compile(r"(\d{1,18})\.\w+$")  # of COCO's names: COCO_train2014_000000380440.jpg
COCO_NAME = Kind("COCO's name of an image", lambda name: TEXT.fits(name) and bool(_IMAGE_ID.search(name)))
QUALITY = Kind("a number", lambda value: type(value) in (int, float))
IMAGE = {"id": WHOLE, "file_name": COCO_NAME, "caption": TEXT}
ANNOTATION = {"image_id": WHOLE, "bbox": BOX, "caption_quality": QUALITY}


@dataclass(frozen=True)
class Reviewed:
    """What a review says of the sentences of a split.

    Attributes:
        flagged: `sent_id` of those that are wrong.
        n_records: how many sentences the file is about.
        n_unmatched: of them, records of sentences that are not among those read.
        first_unmatched: the first of these, to look up; empty if there is none.
        n_not_reviewed: sentences that were read and have no record.
    """

    flagged: frozenset[int]
    n_records: int
    n_unmatched: int
    first_unmatched: str
    n_not_reviewed: int

    def counts(self) -> dict[str, int]:
        """Of records and sentences, for JSON."""
        counts = {"n_records": self.n_records, "n_flagged": len(self.flagged)}
        return counts | {"n_unmatched": self.n_unmatched, "n_not_reviewed": self.n_not_reviewed}

    def __str__(self) -> str:
        said = f"reviewed: {self.n_records} records; sentences flagged: {len(self.flagged)}"
        if self.n_unmatched:
            said += f"; records that match no sentence: {self.n_unmatched} (first: {self.first_unmatched})"
        if self.n_not_reviewed:
            said += f"; sentences without a record: {self.n_not_reviewed}"
        return said


def read_reviewed(path: str | Path, examples: Sequence[GroundingExample]) -> Reviewed:
    """Read a review and find its sentences among those of a split.

    A record means the sentences with its image, its text and its box, but for a pixel of rounding.

    Raises:
        DataError: the file is missing or damaged, has another layout, none of its records match, or all
            sentences are flagged.
    """
    with many_objects():
        records = _records(Path(path))
    said: dict[tuple[int, str], list[tuple[int, Box]]] = defaultdict(list)
    for example in examples:
        for expression in example.expressions:
            said[example.image_id, expression.text].append((expression.sent_id, expression.box_xyxy))
    reviewed, flagged, unmatched = set(), set(), []
    for image, annotation in records:
        found = _sentences(image, annotation, said)
        reviewed.update(found)
        if annotation["caption_quality"] <= 0:
            flagged.update(found)
        if not found:
            unmatched.append(f"{image['file_name']}, {image['caption']!r}")
    if not reviewed:
        raise DataError(
            f"{path}: expected records of the sentences that are scored (the same data set and split), got "
            f"{len(records)} of others{f', first {unmatched[0]}' if unmatched else ''}"
        )
    left = sum(map(len, said.values())) - len(reviewed)
    if len(flagged) == len(reviewed) + left:
        raise DataError(f"{path}: expected a sentence that is not flagged, got {len(flagged)} that are")
    return Reviewed(frozenset(flagged), len(records), len(unmatched), "".join(unmatched[:1]), left)


def _records(path: Path) -> list[tuple[Record, Record]]:
    """The record of each sentence's image with its annotation."""
    content = read_json(path, "Ref-L4's reviewed annotations as JSON")
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path}: expected Ref-L4's reviewed annotations, an object with a list under {key!r}"
            )
    images = {record["id"]: record for record in checked(content["images"], IMAGE, f"{path}, images")}
    annotations = checked(content["annotations"], ANNOTATION, f"{path}, annotations")
    for annotation in annotations:
        if annotation["image_id"] not in images:
            raise DataError(f"{path}: expected a record with id {annotation['image_id']} under 'images'")
    return [(images[annotation["image_id"]], annotation) for annotation in annotations]


def _sentences(
    image: Record, annotation: Record, said: dict[tuple[int, str], list[tuple[int, Box]]]
) -> list[int]:
    """Ids of the sentences that a record means: twice the same where a reference repeats its sentence."""
    x, y, width, height = annotation["bbox"]
    corners = (x, y, x + width, y + height)
    image_id = int(_IMAGE_ID.search(image["file_name"])[1])
    return [
        sent_id
        for sent_id, box in said.get((image_id, clean_text(image["caption"])), ())
        if all(abs(a - b) <= BOX_TOLERANCE_PX for a, b in zip(box, corners, strict=True))
    ]
