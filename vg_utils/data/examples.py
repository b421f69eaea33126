"""The records every data set here is made of: an image with all the expressions that refer into it.

A data set is any sequence of `GroundingExample`. Records are plain and immutable, validated when they are
built, and hold a path rather than pixels, so that the 25,799 images of RefCOCOg fit in memory as records.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

BOX_TOLERANCE_PX = 1.0  # COCO's boxes overhang by rounding: that much is clipped, more is an error
LARGEST_PX = 1e9  # a coordinate beyond is no coordinate
MESSAGE = 1000  # characters of an error's message

Box = tuple[float, float, float, float]


class DataError(ValueError):
    """Bad input data. The message says what was expected, what came, and where (file, key, id), on one line.

    A worker of a DataLoader hands on an error as the text of its traceback; its last line is the message.
    """

    def __init__(self, message: str):
        if message.startswith("Caught ") and "Traceback (most recent call last)" in message:
            message = message.rstrip().rpartition("\n")[2].partition(": ")[2]
        super().__init__(one_line(message))


def one_line(text: str, length: int = MESSAGE) -> str:
    """The text without line breaks, and without its middle where it is longer than `length`."""
    text = " ".join(text.splitlines()) if "\n" in text or "\r" in text else text
    if len(text) <= length:
        return text
    end = length // 4
    return f"{text[: length - end - 5]} ... {text[-end:]}"


class BadRecord(DataError):
    """One record that cannot be used.

    Attributes:
        reason: the kind of fault in a few words ("image not found"); faults are counted by it.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{message} ({reason})")
        self.reason, self._message = reason, message

    def __reduce__(self) -> tuple:  # pickled as it was made, so that it comes back from another process
        return BadRecord, (self.reason, self._message)


class Expression(NamedTuple):
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
    box_xyxy: Box
    sent_id: int
    ref_id: int
    category: str = "unknown"
    family: str = ""
    distractors: int | None = None


class AbsentPhrase(NamedTuple):
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
    object_boxes_xyxy: tuple[Box, ...] = ()
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
    fault = box_fault(expression.box_xyxy, size_wh)
    if fault is None and expression.text.strip():
        return
    where = f"{where}, ref {expression.ref_id}, sentence {expression.sent_id}"
    if fault is None:
        raise DataError(f"{where}: expected a sentence, got {expression.text!r}")
    raise _bad_box(fault, expression.box_xyxy, where)


def box_fault(box_xyxy: Sequence[float], size_wh: tuple[int, int]) -> tuple[str, str] | None:
    """What is wrong with corners: the reason and what was expected; None if the box is usable.

    Usable are four finite numbers that have area, are pixels and not shares of the image's sides, and are
    inside the image but for `BOX_TOLERANCE_PX`.
    """
    width, height = size_wh
    try:
        x1, y1, x2, y2 = box_xyxy
        if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and (x2 > 1 or y2 > 1):
            return None  # nearly all of them
        finite = (
            -LARGEST_PX <= x1 <= LARGEST_PX
            and -LARGEST_PX <= y1 <= LARGEST_PX
            and -LARGEST_PX <= x2 <= LARGEST_PX
            and -LARGEST_PX <= y2 <= LARGEST_PX
        )
    except (TypeError, ValueError):
        finite = False
    if not finite:
        return "not a box", "a box of four finite numbers (x1, y1, x2, y2)"
    if x2 <= x1 or y2 <= y1:
        return "box without area", "a box with x2 > x1 and y2 > y1"
    if (
        x1 < -BOX_TOLERANCE_PX
        or y1 < -BOX_TOLERANCE_PX
        or x2 > width + BOX_TOLERANCE_PX
        or y2 > height + BOX_TOLERANCE_PX
    ):
        return "box outside the image", f"a box inside the {width}x{height} image"
    if x2 <= 1 and y2 <= 1 and max(size_wh) > 1:
        return "box in shares", f"pixels of the {width}x{height} image (these look like shares of its sides)"
    return None


def fit_box(box_xyxy: Sequence[float], size_wh: tuple[int, int], where: str) -> Box:
    """The box cut to the image, which moves a side by `BOX_TOLERANCE_PX` at most.

    Raises:
        BadRecord: see `box_fault`; or nothing of it is left, as of a sliver beside the image.
    """
    fault = box_fault(box_xyxy, size_wh)
    if fault is None:
        (x1, y1, x2, y2), (width, height) = box_xyxy, size_wh
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        if x2 > x1 and y2 > y1:
            return float(x1), float(y1), float(x2), float(y2)
        fault = "box outside the image", f"a box inside the {width}x{height} image"
    raise _bad_box(fault, box_xyxy, where)


def _bad_box(fault: tuple[str, str], box: Sequence[float], where: str) -> BadRecord:
    reason, expected = fault
    return BadRecord(reason, f"{where}: expected {expected}, got {one_line(str(box), 100)}")


@dataclass
class Report:
    """What was left out of a data set, and what else is to be known of it.

    Attributes:
        counts: number of records by reason.
        first: the message of the first record of each reason, so that there is something to look up.
        notes: sentences about what was read, such as that two splits share images.

    >>> report = Report()
    >>> report.add(BadRecord("empty sentence", "refs(umd).p, ref 7"))
    >>> print(report)
    left out 1: 1 x empty sentence (first: refs(umd).p, ref 7 (empty sentence))
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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

    @property
    def worth_saying(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.counts or self.notes)

    def __str__(self) -> str:
        if not self.counts:
            return "; ".join(self.notes or ["nothing left out"])
        parts = [f"{n} x {reason} (first: {self.first[reason]})" for reason, n in self.counts.most_common()]
        return f"left out {self.total}: " + "; ".join([*parts, *self.notes])


@contextmanager
def told(report: Report | None, source: str | Path, split: str) -> Iterator[Report]:
    """The report to fill: the one that is given, whose owner says it, or one that becomes a warning."""
    if report is not None:
        yield report
        return
    own = Report()
    yield own
    if own.worth_saying:
        warnings.warn(f"{source}, split {split}: {own}", stacklevel=4)  # at who called the reader
