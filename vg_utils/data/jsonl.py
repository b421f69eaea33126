"""A person's own data: one JSON object a line, with images beside it.

    {"image": "photos/desk.jpg", "expressions": [{"text": "the red mug", "box_xyxy": [12, 40, 96, 150]}]}

The path of an image is relative to the file. A box is corners (x1, y1, x2, y2) in pixels of the image as a
viewer shows it (see `images.py`). `category` may stand beside `text`, and beside `expressions` may stand
`"absent": ["the blue mug"]`, phrases that fit nothing in the image. A folder holds `train.jsonl`,
`val.jsonl`, `test.jsonl`; of a single file `lines_of` says which lines belong to a split.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vg_utils.data.examples import (
    AbsentPhrase,
    BadRecord,
    Box,
    DataError,
    Expression,
    GroundingExample,
    Report,
    fit_box,
    told,
)
from vg_utils.data.images import image_size
from vg_utils.data.records import BOX, LIST, TEXT, Kind, Record, all_fit, check, parse_json, read_bytes, shown
from vg_utils.data.splits import divide, sharing
from vg_utils.data.text import clean_text
from vg_utils.files import write_atomically

EVERY = "all"  # the split of every line of a file
HELD_OUT = ("val", "test", "testA", "testB")
WORDS = Kind("words", TEXT.fits)  # and some of them: what is left of it is seen when it is cleaned
TEXT_OR_NULL = Kind("text", lambda value: value is None or TEXT.fits(value))
LINE, OF_LINE = {"image": TEXT, "expressions": LIST}, {"split": TEXT_OR_NULL, "absent": LIST}
EXPRESSION, OF_EXPRESSION = {"text": WORDS, "box_xyxy": BOX}, {"category": TEXT_OR_NULL}
_NAMES = re.compile(rb'"image"\s*:\s*"([^"\\]+)"')


class Line(NamedTuple):
    """A line that could be read: which it is of those that are not blank, its place, its content."""

    image_id: int
    where: str
    record: Record


def load_jsonl(
    path: str | Path, split: str, *, strict: bool = True, report: Report | None = None
) -> list[GroundingExample]:
    """Read one split of a `.jsonl` file, or of a folder with a file for each split.

    Ids are given in the order of the file: `image_id` counts lines, `sent_id` phrases and `ref_id` the
    different boxes of each image (two expressions with the same box refer to the same object).

    Args:
        path: the file or the folder.
        split: which file of the folder, or which lines of the file (see `lines_of`).
        strict: raise on the first bad line or expression; else leave bad ones out, and count them in `report`
            or warn of it.
        report: filled with what was left out.

    Raises:
        DataError: no such file, no line of that split, or (strict) a bad line; it names file and line.
    """
    path = Path(path)
    file = jsonl_file(path, split)
    with told(report, file, split) as report:
        lines = _lines(file, strict, report)
        own = lines if path.is_dir() else lines_of(split, lines, file, report)
        expressions = [one for line in own for one in line.record["expressions"]]
        fit = all_fit(expressions, EXPRESSION, OF_EXPRESSION)
        reader = _Reader(file.parent, strict, report, fit)
        examples = [example for line in own if (example := reader.example(line)) is not None]
        if path.is_dir():
            others = {other.stem: _images_in(other) for other in path.glob("*.jsonl") if other != file}
            report.notes += sharing(split, {line.record["image"] for line in own}, others)
    if not examples:
        names = sorted({str(line.record.get("split")) for line in lines} - {split, "None"})
        names = names or ([file.stem] if lines else [])
        found = f"lines of {', '.join(names)}" if names and not own else "no usable line"
        raise DataError(f"{file}: expected lines of split {split!r}, found {found}; {report}")
    return examples


def jsonl_file(path: str | Path, split: str) -> Path:
    """The file itself, or the folder's `SPLIT.jsonl`. Raises DataError that names the files there."""
    path = Path(path)
    if not path.is_dir():
        return path
    file = path / f"{split}.jsonl"
    if not file.is_file():
        found = ", ".join(sorted(other.name for other in path.glob("*.jsonl")))
        raise DataError(f"{path}: expected {file.name}, found {found or 'no .jsonl file'}")
    return file


def lines_of(split: str, lines: list[Line], file: Path, report: Report) -> list[Line]:
    """The lines of a single file that belong to a split.

    Where lines name their `"split"`, those, and the ones that name none. Where no line does, `val.jsonl` is
    val and nothing else (`test.jsonl` test, and so on), and any other file is divided by the names of its
    images, so that nothing is trained on that is scored. The split "all" is every line.
    """
    if split == EVERY:
        return lines
    by_name: dict[str | None, set[str]] = defaultdict(set)
    for line in lines:
        by_name[line.record.get("split")].add(line.record["image"])
    images = by_name.pop(None, set())  # of lines that name no split
    if by_name:
        own = [line for line in lines if (line.record.get("split") or split) == split]
        everywhere = {"every split": images} if images else {}
        report.notes += sharing(split, {line.record["image"] for line in own}, by_name | everywhere)
        return own
    if file.stem in HELD_OUT:
        return lines if file.stem == split else []
    if len(images) < 3:
        report.notes.append(f"every split is all of these {len(images)} images, too few to be divided")
        return lines
    splits = divide(images)
    counts = {name: sum(s == name for s in splits.values()) for name in ("train", "val", "test")}
    parts = ", ".join(f"{number} {name}" for name, number in counts.items())
    report.notes.append(f"no line names its split, so the images are divided by their names: {parts}")
    return [line for line in lines if splits[line.record["image"]] == split]


def _images_in(file: Path) -> set[str]:
    """Names of images in a file, found without parsing it: names with escaped characters are passed over."""
    try:
        return {name.decode(errors="replace") for name in _NAMES.findall(read_bytes(file, "JSON lines"))}
    except DataError:
        return set()


def _lines(file: Path, strict: bool, report: Report) -> list[Line]:
    """The lines that are not blank and hold a record."""
    what, lines = "a text file of JSON lines", []
    try:
        content = read_bytes(file, what).removeprefix(codecs.BOM_UTF8)  # with which some editors begin a file
        content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected {what}, got: {error}") from error
    # Not splitlines(): it would also break lines at characters that may stand inside a JSON string.
    name, image_id = str(file), 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line or line.isspace():
            continue
        where = f"{name}, line {number}"
        try:
            record = parse_json(line, where, "a JSON object")
            check(record, LINE, where, OF_LINE)
            lines.append(Line(image_id, where, record))
        except DataError as error:
            bad = error if isinstance(error, BadRecord) else BadRecord("not JSON", str(error))
            report.handle(bad, strict)
        image_id += 1
    return lines


class _Reader:
    """Turns lines into examples and keeps the running ids."""

    def __init__(self, folder: Path, strict: bool, report: Report, expressions_fit: bool):
        self._folder, self._strict, self._report = folder, strict, report
        self._expressions_fit = expressions_fit  # asked of all at once: one by one takes far longer
        self._ref_ids, self._sent_ids = count(), count()
        self._size_wh = lru_cache(maxsize=None)(image_size)  # of one image on many lines only once

    def example(self, line: Line) -> GroundingExample | None:
        """The line's example; None if nothing of it can be used, which has been counted."""
        record, where = line.record, line.where
        try:
            picture, size_wh = self._picture(record["image"], where)
        except BadRecord as error:
            self._report.handle(error, self._strict)
            return None
        expressions: list[Expression] = []
        ref_of: dict[Box, int] = {}
        category_of: dict[Box, str] = {}
        for number, expression in enumerate(record["expressions"], start=1):
            try:
                text, box, category = self._expression(expression, size_wh, f"{where}, expression {number}")
            except BadRecord as error:
                self._report.handle(error, self._strict)
                continue
            if box not in ref_of:
                ref_of[box] = next(self._ref_ids)
            category_of[box] = category
            expressions.append(Expression(text, box, next(self._sent_ids), ref_of[box], category))
        if not record["expressions"]:
            message = f"{where}: expected at least one expression, got none"
            self._report.handle(BadRecord("no expression", message), self._strict)
        if not expressions:
            return None
        absent = ()
        if "absent" in record:
            absent = tuple(AbsentPhrase(text, next(self._sent_ids)) for text in self._absent(record, where))
        boxes, categories = tuple(category_of), tuple(category_of.values())
        return GroundingExample(
            picture, line.image_id, tuple(expressions), size_wh, boxes, categories, absent
        )

    def _picture(self, name: str, where: str) -> tuple[Path, tuple[int, int]]:
        """The image's path, and its size from its header: the pixels stay unread."""
        path = f"{self._folder}/{name}"
        if "\\" in name and not os.path.isfile(path):  # written on Windows
            path = path.replace("\\", "/")
        try:
            return Path(path), self._size_wh(path)
        except DataError as error:
            raise BadRecord("image not readable", f"{where}: expected the image {error}") from error

    def _absent(self, record: Record, where: str) -> Iterable[str]:
        """The phrases that fit nothing in the image, of a line that names some."""
        for text in record["absent"]:
            if TEXT.fits(text) and (cleaned := clean_text(text)):
                yield cleaned
            else:
                message = f"{where}: expected a list of phrases under 'absent', got {shown(text)} in it"
                self._report.handle(BadRecord("absent is not words", message), self._strict)

    def _expression(self, record: Any, size_wh: tuple[int, int], where: str) -> tuple[str, Box, str]:
        """Text, box (corners, pixels) and category of one expression."""
        if not self._expressions_fit:
            check(record, EXPRESSION, where, OF_EXPRESSION)
        text = clean_text(record["text"])
        if not text:
            message = f"{where}: expected words under 'text', got {shown(record['text'])}"
            raise BadRecord("text is not words", message)
        return text, fit_box(record["box_xyxy"], size_wh, where), record.get("category") or "unknown"


def write_jsonl(path: str | Path, examples: Iterable[GroundingExample]) -> None:
    """Write examples as JSON lines that `load_jsonl` reads, with the images' paths relative to the file.

    Raises:
        DataError: an example holds its image in memory instead of a path.
    """
    path = Path(path)
    lines = [json.dumps(_line(example, path.parent), ensure_ascii=False) + "\n" for example in examples]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines).encode())


def _line(example: GroundingExample, folder: Path) -> Record:
    if isinstance(example.image, Image.Image):
        raise DataError(f"image {example.image_id}: expected the path of an image, got one in memory")
    expressions = [
        {"text": e.text, "box_xyxy": list(e.box_xyxy), "category": e.category} for e in example.expressions
    ]
    line = {"image": Path(os.path.relpath(example.image, folder)).as_posix(), "expressions": expressions}
    return line | ({"absent": [phrase.text for phrase in example.absent]} if example.absent else {})
