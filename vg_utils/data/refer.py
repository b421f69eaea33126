"""RefCOCO, RefCOCO+ and RefCOCOg in their own files, in every partition.

A folder holds `annotations/instances.json` (COCO's annotations) and `annotations/refs(PARTITION).p` (the
references: which sentences name which annotation), or the files directly; the images lie in `images/`,
`train2014/` or the folder itself. RefScenes is written in the same layout, so this is the one reader; its
`absent(PARTITION).p` holds phrases that fit nothing in their image.

RefCOCOg has two partitions. `umd` (Nagaraja et al., 2016) is the default: no image is in two of its splits.
`google` (Mao et al., 2016) splits objects, not images, so its train and val share images; see `leakage`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vg_utils.data.coco_boxes import corners
from vg_utils.data.examples import (
    AbsentPhrase,
    BadRecord,
    Box,
    DataError,
    Expression,
    GroundingExample,
    Report,
    told,
)
from vg_utils.data.grefcoco import by_targets
from vg_utils.data.records import TEXT, WHOLE, Record, all_fit, checked, shown
from vg_utils.data.refer_files import (
    IMAGE_FOLDERS,
    ImageFolders,
    annotation_folder,
    choose_partition,
    images_by_split,
    picture_name,
    read_absent,
    read_instances,
    read_refs,
    refs_file,
    split_names,
)
from vg_utils.data.refer_index import Index, build_index, plain_boxes, size_of, without_duplicates
from vg_utils.data.splits import sharing
from vg_utils.data.text import clean_text

UNKNOWN = "unknown"
SENTENCE, OF_SENTENCE = {"sent_id": WHOLE, "sent": TEXT}, {"family": TEXT}  # RefScenes' files know the family


def load_refer(
    root: str | Path,
    split: str,
    partition: str | None = None,
    *,
    strict: bool = True,
    require_images: bool = True,
    report: Report | None = None,
) -> list[GroundingExample]:
    """Read one split, one example an image, in the order of the image ids.

    Args:
        root: the folder (see the module's text).
        split: `train`, `val`, `test` (RefCOCO and RefCOCO+: `testA`, `testB`).
        partition: `umd`, `google`, `unc`; None takes the only one there, or `umd` if it is among several.
        strict: raise on the first bad record; else leave bad ones out, and count them in `report` or warn.
        require_images: an image that is not there is a bad record. Off: only the annotations are wanted.
        report: filled with what was left out. Bad boxes of objects that nobody refers to are always left out.

    Raises:
        DataError: missing or damaged files, an unknown partition or split, or (strict) a bad record.
    """
    folder = annotation_folder(root)
    partition = choose_partition(folder, partition)
    refs_path = refs_file(folder, partition)
    with told(report, refs_path, split) as report:
        refs = read_refs(refs_path, strict, report)
        absent = read_absent(folder / f"absent({partition}).p", strict, report)
        if refs_path.suffix == ".json":
            refs, absent = by_targets(refs, split, str(refs_path), report)
        return build_examples(
            read_instances(folder / "instances.json"),
            refs,
            split,
            [Path(root) / name for name in IMAGE_FOLDERS],
            source=str(refs_path),
            absent=absent,
            strict=strict,
            require_images=require_images,
            report=report,
        )


def build_examples(
    instances: Record,
    refs: Sequence[Record],
    split: str,
    image_folders: Sequence[Path],
    *,
    source: str,
    absent: Sequence[Record] = (),
    strict: bool = True,
    require_images: bool = True,
    report: Report,
) -> list[GroundingExample]:
    """Join references and annotations into examples; see `load_refer`, which reads both from files.

    Args:
        instances: as `read_instances` gives it.
        refs: as `read_refs` gives it, all splits of one partition.
        split: the split wanted.
        image_folders: where to look for the images, in this order.
        source: name of the references in error messages.
        absent: as `read_absent` gives it, all splits of the partition.
        strict, require_images, report: see `load_refer`.
    """
    by_image: dict[int, list[Record]] = defaultdict(list)
    for ref in without_duplicates(refs, "ref_id", source, strict, report):
        if ref["split"] == split:
            by_image[ref["image_id"]].append(ref)
    if not by_image:
        found = ", ".join(split_names(refs)) or "none"
        raise DataError(f"{source}: expected the split {split!r}, found: {found}")

    index = build_index(instances, refs, strict, report)
    fitting_nothing = _absent_by_image(absent, split, by_image, source, strict, report)
    images = ImageFolders(image_folders)
    sentences = [s for own in by_image.values() for ref in own for s in ref["sentences"]]
    sentences += [phrase for phrases in fitting_nothing.values() for phrase in phrases]
    fit = all_fit(sentences, SENTENCE, OF_SENTENCE)
    boxes = plain_boxes(index, by_image)
    builder = _Builder(
        index, boxes, fitting_nothing, images, image_folders, source, strict, require_images, report, fit
    )
    examples = [builder.example(image_id, by_image[image_id]) for image_id in sorted(by_image)]
    report.notes += sharing(split, by_image.keys(), images_by_split(refs))
    return [example for example in examples if example is not None]


def _absent_by_image(
    absent: Iterable[Record],
    split: str,
    image_ids: Container[int],
    source: str,
    strict: bool,
    report: Report,
) -> dict[int, list[Record]]:
    """The split's absent phrases by image; one of an image that no reference is about is a bad record."""
    by_image: dict[int, list[Record]] = defaultdict(list)
    for phrase in absent:
        image_id = phrase["image_id"]
        if phrase["split"] != split:
            continue
        if image_id in image_ids:
            by_image[image_id].append(phrase)
        else:
            where = f"{source}, absent sentence {phrase['sent_id']}"
            message = f"{where}: expected an image with references in the split {split!r}, got {image_id}"
            report.handle(BadRecord("absent phrase of an unknown image", message), strict)
    return by_image


@dataclass
class _Builder:
    """Turns the references of one image into an example; faults go to `report`, or up when strict."""

    index: Index
    plain_boxes: dict[int, Box]
    absent: dict[int, list[Record]]
    images: ImageFolders
    image_folders: Sequence[Path]
    source: str
    strict: bool
    require_images: bool
    report: Report
    sentences_fit: bool  # asked of all at once: one by one takes a tenth of the reading
    sent_ids: set[int] = field(default_factory=set)

    def example(self, image_id: int, refs: list[Record]) -> GroundingExample | None:
        where = f"{self.source}, image {image_id}"
        try:
            record, size_wh = self._image_record(image_id, where)
            picture = self._picture(image_id, record, where)
        except BadRecord as error:
            self.report.handle(error, self.strict)
            return None
        boxes, faults = self._boxes(image_id, size_wh)
        category_ids = [self.index.annotations[ann_id]["category_id"] for ann_id in boxes]
        expressions: list[Expression] = []
        for ref in refs:
            expressions += self._expressions(ref, boxes, faults, where)
        if not expressions:  # each of them has been counted
            return None
        for ann_id, fault in faults.items():
            if ann_id not in self.index.referred:  # else its reference has been counted
                self.report.add(BadRecord(f"other object, {fault.reason}", str(fault)))
        absent = self._sentences(self.absent.get(image_id, ()), f"{where}, absent")
        return GroundingExample(
            image=picture,
            image_id=image_id,
            expressions=tuple(expressions),
            size_wh=size_wh,
            object_boxes_xyxy=tuple(boxes.values()),
            object_categories=tuple([self.index.categories.get(i, UNKNOWN) for i in category_ids]),
            absent=tuple([AbsentPhrase(*phrase) for phrase in absent]),
        )

    def _image_record(self, image_id: int, where: str) -> tuple[Record, tuple[int, int]]:
        """The image's record, and width and height in pixels."""
        record = self.index.images.get(image_id)
        if record is None:
            raise BadRecord("image without a record", f"{where}: expected its record in instances.json")
        size_wh = size_of(record)
        if size_wh is None:
            found = shown((record.get("width"), record.get("height")))
            message = f"{where}: expected whole numbers of pixels as width and height, got {found}"
            raise BadRecord("image without a size", message)
        return record, size_wh

    def _picture(self, image_id: int, record: Record, where: str) -> Path:
        path = self.images.find(image_id, record.get("file_name"))
        if path is not None:
            return path
        if self.require_images:
            places = ", ".join(map(str, self.image_folders))
            raise BadRecord("image not found", f"{where}: expected {picture_name(image_id)} in {places}")
        return self.image_folders[0] / picture_name(image_id)

    def _boxes(self, image_id: int, size_wh: tuple[int, int]) -> tuple[dict[int, Box], dict[int, BadRecord]]:
        """The boxes of an image's objects by annotation, and the faults of those without a usable one."""
        boxes, faults = {}, {}
        for annotation in self.index.of_image.get(image_id, ()):
            ann_id = annotation["id"]
            if (box := self.plain_boxes.get(ann_id)) is not None:
                boxes[ann_id] = box
                continue
            where = f"instances.json, image {image_id}, annotation {ann_id}"
            try:
                boxes[ann_id] = corners(annotation.get("bbox"), size_wh, where)
            except BadRecord as error:
                faults[ann_id] = error
        return boxes, faults

    def _expressions(
        self, ref: Record, boxes: dict[int, Box], faults: dict[int, BadRecord], where: str
    ) -> list[Expression]:
        ref_id, where = ref["ref_id"], f"{where}, ref {ref['ref_id']}"
        try:
            annotation = self._annotation(ref, where)
            if annotation["id"] in faults:
                raise faults[annotation["id"]]
        except BadRecord as error:
            self.report.handle(error, self.strict)
            return []
        box_xyxy = boxes[annotation["id"]]
        category = self.index.categories.get(annotation["category_id"], UNKNOWN)
        distractors = self._distractors(annotation, category)
        return [
            Expression(text, box_xyxy, sent_id, ref_id, category, family, distractors)
            for text, sent_id, family in self._sentences(ref["sentences"], where)
        ]

    def _annotation(self, ref: Record, where: str) -> Record:
        annotation = self.index.annotations.get(ref["ann_id"])
        if annotation is None:
            message = f"{where}: expected annotation {ref['ann_id']} in instances.json"
            raise BadRecord("reference without an annotation", message)
        if annotation["image_id"] != ref["image_id"]:
            message = f"{where}: annotation {ref['ann_id']} belongs to image {annotation['image_id']}"
            raise BadRecord("annotation of another image", message)
        return annotation

    def _sentences(self, sentences: Iterable[Any], where: str) -> list[tuple[str, int, str]]:
        """Text, id and family of the sentences that can be used."""
        if not self.sentences_fit:
            sentences = checked(sentences, SENTENCE, where, self.strict, self.report, OF_SENTENCE)
        kept = []
        for sentence in sentences:
            text, sent_id = clean_text(sentence["sent"]), sentence["sent_id"]
            if text and sent_id not in self.sent_ids:
                self.sent_ids.add(sent_id)
                kept.append((text, sent_id, sentence.get("family", "")))
                continue
            fault = ("duplicate sent_id", f"sent_id {sent_id} comes twice")
            if not text:
                fault = ("empty sentence", f"expected words, got {shown(sentence['sent'])}")
            self.report.handle(BadRecord(fault[0], f"{where}, sentence {sent_id}: {fault[1]}"), self.strict)
        return kept

    def _distractors(self, annotation: Record, category: str) -> int | None:
        if not self.index.lists_all_objects or category == UNKNOWN:
            return None
        own = self.index.of_image[annotation["image_id"]]
        return [other["category_id"] for other in own].count(annotation["category_id"]) - 1
