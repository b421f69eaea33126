"""From the boxes of any format to JSON lines: which phrases mean one box, which split an image is in."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vg_utils.data.convert.items import Item
from vg_utils.data.examples import (
    BadRecord,
    Box,
    DataError,
    Expression,
    GroundingExample,
    Report,
    fit_box,
)
from vg_utils.data.images import image_size, open_image, upright_size
from vg_utils.data.jsonl import write_jsonl
from vg_utils.data.markers import CONVERTING, check_begun, write_marker
from vg_utils.data.splits import divide
from vg_utils.data.text import clean_text
from vg_utils.files import write_atomically

SPLITS = ("train", "val", "test")
UNREADABLE = "image not readable"


@dataclass
class Summary:
    """What came over and what did not.

    Attributes:
        root: the folder.
        images, phrases: numbers by split.
        from_classes: whether the phrases are names of classes: the source has no others.
        report: what did not come over, by reason.
    """

    root: Path
    images: Counter[str] = field(default_factory=Counter)
    phrases: Counter[str] = field(default_factory=Counter)
    from_classes: bool = False
    report: Report = field(default_factory=Report)

    def __str__(self) -> str:
        splits = ", ".join(f"{self.images[s]:,} {s}" for s in SPLITS if self.images[s])
        what = "names of classes" if self.from_classes else "phrases"
        lines = [
            f"{self.root}: {self.images.total():,} images ({splits}) with {self.phrases.total():,} {what}",
            *self.report.notes,
            *(["did not come over:"] if self.report.counts else []),
        ]
        for reason, number in self.report.counts.most_common():
            lines.append(f"  {number:>7,}  {reason} (first: {self.report.first[reason]})")
        return "\n".join(lines)


def check_unconverted(root: Path, source: str) -> None:
    """See whether the lines of a source can be written there; see `markers.check_begun`."""
    check_begun(root, CONVERTING, {"source": source}, empty=())


def write_items(items: Iterable[Item], root: Path, report: Report, source: str) -> Summary:
    """Write a file for each split, and the images that the source holds itself; all is checked before.

    Where no item has a phrase, the names of classes are the phrases. A phrase that is said of several boxes
    of its image means none of them: it is left out and counted, as are boxes that `fit_box` refuses and
    images that are missing or of another size than the source states. Images stay where they are.

    Splits are those of the source. Where it names no `val`, images of `train` and of no split are divided by
    their names.

    Args:
        items: a box each.
        root: as `check_unconverted` wants it.
        report: what was left out already; the rest is added.
        source: its name in messages.

    Raises:
        DataError: no phrase is left.
    """
    items = list(items)
    from_classes = not any(item.texts for item in items)
    if from_classes:
        items = [item._replace(texts=(item.category.replace("_", " "),)) for item in items]
    of_image: dict[Path, list[Item]] = defaultdict(list)
    for item in items:
        of_image[item.image].append(item)
    examples = {}
    for number, (image, own) in enumerate(of_image.items()):
        example = _example(number, root / image if own[0].content else image, own, report)
        if example is not None:
            examples[image] = example
    if not examples:
        where = "; name the images' folder with --images" if UNREADABLE in report.counts else ""
        raise DataError(
            f"{source}: expected boxes with phrases or classes, found none to use; {report}{where}"
        )

    torn = sum(len({item.split for item in of_image[image]}) > 1 for image in examples)
    if torn:
        report.notes.append(f"images of several splits: {torn}, each of which goes where it comes first")
    splits = _splits({image: of_image[image][0].split for image in examples}, report)
    write_marker(root / CONVERTING, {"source": source})
    for image in examples:
        if (content := of_image[image][0].content) is not None:
            write_atomically(root / image, content())
    summary = Summary(root, from_classes=from_classes, report=report)
    for split in SPLITS:
        own = [example for image, example in examples.items() if splits[image] == split]
        if own:
            write_jsonl(root / f"{split}.jsonl", own)
            summary.images[split] = len(own)
            summary.phrases[split] = sum(len(example.expressions) for example in own)
    (root / CONVERTING).unlink()
    return summary


def _example(number: int, path: Path, items: list[Item], report: Report) -> GroundingExample | None:
    """The image with the phrases that mean one of its boxes; None if there are none."""
    try:
        size_wh = _size(path, items[0])
    except BadRecord as error:
        report.add(error)
        return None
    boxes_of = _boxes_of(items)
    expressions: dict[tuple[str, Box], Expression] = {}
    for ref_id, item in enumerate(items):
        try:
            box = fit_box(item.box_xyxy, size_wh, item.where)
        except BadRecord as error:
            report.add(error)
            continue
        texts = [clean_text(text) for text in item.texts]
        if not any(texts):
            report.add(BadRecord("box without a phrase", f"{item.where}: expected a phrase, got none"))
        for text in filter(None, texts):
            if len(boxes_of[text]) == 1:
                sent_id = len(expressions)
                expressions[text, box] = Expression(text, box, sent_id, ref_id, item.category or "unknown")
            else:
                message = f"{item.where}: expected {text!r} of one box of its image, got it of several"
                report.add(BadRecord("phrase of several boxes", message))
    if not expressions:
        return None
    return GroundingExample(path, number, tuple(expressions.values()), size_wh)


def _size(path: Path, item: Item) -> tuple[int, int]:
    """Width and height of the image; a BadRecord where it cannot be read, or the source states others."""
    try:
        if item.content is None:
            size_wh = image_size(path)
        else:
            with open_image(io.BytesIO(item.content())) as image:
                size_wh = upright_size(image)
    except DataError as error:
        raise BadRecord(UNREADABLE, f"{item.where}: expected the image {error}") from error
    if item.size_wh not in (None, size_wh):
        message = (
            f"{item.where}: expected an image of {item.size_wh} pixels (width, height), as is said there"
        )
        raise BadRecord("image of another size", f"{message}, got {size_wh}: {path}")
    return size_wh


def _boxes_of(items: Iterable[Item]) -> Mapping[str, set]:
    """The different boxes that each text is said of, unusable ones and crowds counted as well."""
    boxes: dict[str, set] = defaultdict(set)
    for item in items:
        for text in map(clean_text, item.texts):
            boxes[text] |= {str(item.box_xyxy)} | ({"others of the crowd"} if item.many else set())
    return boxes


def _splits(own: Mapping[Path, str | None], report: Report) -> dict[Path, str]:
    """A split for each image; what is done without the source is noted."""
    named = set(own.values())
    to_divide = [image for image, split in own.items() if split in (None, "train")]
    if "val" in named or not to_divide:
        return {image: split or "train" for image, split in own.items()}
    by_name = divide({image.name for image in to_divide})
    keeps_test = {"test": "train"} if "test" in named else {}
    report.notes.append("the source names no val: its images are divided by their names")
    return {
        image: split if split == "test" else keeps_test.get(by_name[image.name], by_name[image.name])
        for image, split in own.items()
    }
