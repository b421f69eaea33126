"""The records every data set here is made of: an image with all the expressions that refer into it.

A data set is any sequence of `GroundingExample`. Records are plain and immutable, validated when they are
built, and hold a path rather than pixels, so that the 25,799 images of RefCOCOg fit in memory as records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

BOX_TOLERANCE_PX = 1.0  # COCO's boxes overhang by rounding: that much is clipped, more is an error


class DataError(ValueError):
    """Bad input data. The message says what was expected, what came, and where (file, key, id)."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence that refers to one object.

    Attributes:
        text: the cleaned sentence, never empty.
        box_xyxy: corners (x1, y1, x2, y2) in absolute pixels of the original image, x right, y down.
        sent_id: id of the sentence, unique in its data set.
        ref_id: id of the referred object; the sentences of one object share it.
        category: name of the object's category ("giraffe"; "unknown" where the data set does not say).
        family: kind of expression ("relation", "order", ...); only RefScenes knows it.
        distractors: how many *other* annotated objects of the image share the category; None if unknown.
    """

    text: str
    box_xyxy: tuple[float, float, float, float]
    sent_id: int
    ref_id: int
    category: str = "unknown"
    family: str = ""
    distractors: int | None = None


@dataclass(frozen=True, slots=True)
class AbsentPhrase:
    """One phrase that fits nothing in its image.

    Attributes:
        text: the cleaned sentence, never empty.
        sent_id: id of the sentence, unique in its data set, among those of expressions too.
        family: kind of phrase, as for an expression.
    """

    text: str
    sent_id: int
    family: str = ""


@dataclass(frozen=True, slots=True)
class GroundingExample:
    """One image, all its expressions, and phrases that fit nothing in it.

    Attributes:
        image: path of the image, or the image itself.
        image_id: id of the image (COCO's, where it has one).
        expressions: at least one.
        size_wh: width and height of the original image in pixels.
        object_boxes_xyxy: every annotated object of the image, referred to or not (may be empty).
        object_categories: their category names, in the same order.
        absent: what fits nothing in the image (may be empty; only some data sets have such phrases).

    Raises:
        DataError: an empty sentence, a box that is not four finite numbers, has no area or leaves the image
            by more than `BOX_TOLERANCE_PX` (less is clipped), or no expression at all.
    """

    image: Path | Image.Image
    image_id: int
    expressions: tuple[Expression, ...]
    size_wh: tuple[int, int]
    object_boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    object_categories: tuple[str, ...] = ()
    absent: tuple[AbsentPhrase, ...] = ()

    def __post_init__(self) -> None:
        where = f"image {self.image_id}"
        if not self.expressions:
            raise DataError(f"{where}: expected at least one expression, got none")
        if len(self.object_boxes_xyxy) != len(self.object_categories):
            raise DataError(
                f"{where}: expected a category for each object box, got {len(self.object_boxes_xyxy)} boxes "
                f"and {len(self.object_categories)} categories"
            )
        for expression in self.expressions:
            check_expression(expression, self.size_wh, where)
        for phrase in self.absent:
            if not phrase.text.strip():
                raise DataError(
                    f"{where}, absent sentence {phrase.sent_id}: expected a sentence, got {phrase.text!r}"
                )


def check_expression(expression: Expression, size_wh: tuple[int, int], where: str) -> None:
    """Raise a DataError that names sentence and ref unless the expression is usable."""
    where = f"{where}, ref {expression.ref_id}, sentence {expression.sent_id}"
    if not expression.text.strip():
        raise DataError(f"{where}: expected a sentence, got {expression.text!r}")
    check_box(expression.box_xyxy, size_wh, where)


def check_box(box_xyxy: Iterable[float], size_wh: tuple[int, int], where: str) -> None:
    """Raise a DataError unless the box is four finite numbers, has area and is inside the image."""
    box = tuple(box_xyxy)
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise DataError(f"{where}: expected a box of four finite numbers (x1, y1, x2, y2), got {box}")
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise DataError(f"{where}: expected a box with x2 > x1 and y2 > y1, got {box}")
    width, height = size_wh
    tolerance = BOX_TOLERANCE_PX
    if x1 < -tolerance or y1 < -tolerance or x2 > width + tolerance or y2 > height + tolerance:
        raise DataError(f"{where}: expected a box inside the {width}x{height} image, got {box}")


def clip_box(box_xyxy: Iterable[float], size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box cut to the image; after `check_box` that moves a side by a pixel at most."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    width, height = size_wh
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def load_image(image: Path | str | Image.Image) -> Image.Image:
    """The image as RGB; a file that does not decode is a DataError with its path."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{image}: expected an image, found no such file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{image}: expected an image that decodes, got: {error}") from error


class BadRecord(DataError):
    """One record that cannot be used.

    Attributes:
        reason: the kind of fault in a few words ("image not found"); faults are counted by it.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{message} ({reason})")
        self.reason = reason


@dataclass
class Report:
    """What was left out of a data set.

    Attributes:
        counts: number of records by reason.
        first: the message of the first record of each reason, so that there is something to look up.

    >>> report = Report()
    >>> report.add(BadRecord("empty sentence", "refs(umd).p, ref 7"))
    >>> print(report)
    left out 1: 1 x empty sentence (first: refs(umd).p, ref 7 (empty sentence))
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, error: BadRecord) -> None:
        """Count a record that was left out."""
        self.counts[error.reason] += 1
        self.first.setdefault(error.reason, str(error))

    def handle(self, error: BadRecord, strict: bool) -> None:
        """Raise the error if `strict`, else count it."""
        if strict:
            raise error
        self.add(error)

    @property
    def total(self) -> int:
        """Number of records left out."""
        return self.counts.total()

    def __str__(self) -> str:
        if not self.counts:
            return "nothing left out"
        parts = (f"{n} x {reason} (first: {self.first[reason]})" for reason, n in self.counts.most_common())
        return f"left out {self.total}: " + "; ".join(parts)
