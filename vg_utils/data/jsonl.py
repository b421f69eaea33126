"""A person's own data: one JSON object a line, with images beside it.

    {"image": "photos/desk.jpg", "expressions": [{"text": "the red mug", "box_xyxy": [12, 40, 96, 150]}]}

The path of an image is relative to the file. A box is corners (x1, y1, x2, y2) in pixels of the image as
it is stored, before any rotation that its EXIF data asks for. `category` may stand beside `text`, and beside
`expressions` may stand `"absent": ["the blue mug"]`, phrases that fit nothing in the image. A folder holds
`train.jsonl`, `val.jsonl`, `test.jsonl`; a single file may name each line's `"split"`, and a line that names
none belongs to every split.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from vg_utils.data.examples import (
    AbsentPhrase,
    BadRecord,
    DataError,
    Expression,
    GroundingExample,
    Report,
    check_box,
    clip_box,
)
from vg_utils.data.refer_files import Record, require_keys
from vg_utils.data.text import clean_text
from vg_utils.files import write_atomically

logger = logging.getLogger(__name__)


def load_jsonl(
    path: str | Path, split: str, *, strict: bool = True, report: Report | None = None
) -> list[GroundingExample]:
    """Read one split of a `.jsonl` file, or of a folder with a file for each split.

    Ids are given in the order of the file: `image_id` counts lines, `sent_id` phrases and `ref_id` the
    different boxes of each image (two expressions with the same box refer to the same object).

    Args:
        path: the file or the folder.
        split: which file of the folder, or which lines of the file.
        strict: raise on the first bad line; else leave bad lines out, and count them in `report` or log it.
        report: filled with what was left out.

    Raises:
        DataError: no such file, no line of that split, or (strict) a bad line; it names file and line.
    """
    told, report = report is not None, Report() if report is None else report
    file = jsonl_file(path, split)
    reader = _Reader(file.parent)
    examples, other_splits = [], set()
    for image_id, (where, line) in enumerate(_lines(file)):
        try:
            record = _parse(line, where)
            if record.get("split", split) == split:
                examples.append(reader.example(image_id, record, where))
            else:
                other_splits.add(str(record["split"]))
        except DataError as error:
            if strict:
                raise
            report.add(BadRecord("bad line", str(error)))
    if report.total and not told:  # who gave a report says it, once
        logger.warning("%s, split %s: %s", file, split, report)
    if not examples:
        found = f"lines of {', '.join(sorted(other_splits))}" if other_splits else "no usable line"
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


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place for error messages."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a text file of JSON lines, got: {error}") from error
    # Not splitlines(): it would also break lines at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", line


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: expected a JSON object, got: {error}") from error
    require_keys(record, ("image", "expressions"), where)
    if not isinstance(record["image"], str) or not isinstance(record["expressions"], list):
        raise DataError(f"{where}: expected a path under 'image' and a list under 'expressions'")
    return record


class _Reader:
    """Turns lines into examples and keeps the running ids."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._ref_ids, self._sent_ids = count(), count()

    def example(self, image_id: int, record: Record, where: str) -> GroundingExample:
        picture = self._folder / record["image"]
        size_wh = _size_wh(picture, where)
        parsed = [
            _expression(expression, size_wh, f"{where}, expression {number}")
            for number, expression in enumerate(record["expressions"], start=1)
        ]
        if not parsed:
            raise DataError(f"{where}: expected at least one expression, got none")
        category_of = {box: category for _, box, category in parsed}
        ref_of = {box: next(self._ref_ids) for box in category_of}
        expressions = tuple(
            Expression(text, box, next(self._sent_ids), ref_of[box], category)
            for text, box, category in parsed
        )
        absent = tuple(AbsentPhrase(text, next(self._sent_ids)) for text in _absent(record, where))
        boxes, categories = tuple(category_of), tuple(category_of.values())
        return GroundingExample(picture, image_id, expressions, size_wh, boxes, categories, absent)


def _absent(record: Record, where: str) -> list[str]:
    """The phrases that fit nothing in the image, of a line that may name none."""
    texts = record.get("absent", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and clean_text(text) for text in texts):
        raise DataError(f"{where}: expected a list of phrases under 'absent', got {texts!r}")
    return [clean_text(text) for text in texts]


def _size_wh(picture: Path, where: str) -> tuple[int, int]:
    """Width and height from the image's header; its pixels stay unread."""
    try:
        with Image.open(picture) as opened:
            return opened.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: expected the image {picture}, got: {error}") from error


def _expression(
    record: Any, size_wh: tuple[int, int], where: str
) -> tuple[str, tuple[float, float, float, float], str]:
    """Text, box (corners, pixels) and category of one expression."""
    require_keys(record, ("text", "box_xyxy"), where)
    text, box = record["text"], record["box_xyxy"]
    if not isinstance(text, str) or not clean_text(text):
        raise DataError(f"{where}: expected words under 'text', got {text!r}")
    if not isinstance(box, list) or not all(isinstance(side, int | float) for side in box):
        raise DataError(f"{where}: expected four numbers under 'box_xyxy', got {box!r}")
    check_box(box, size_wh, where)
    box_xyxy = clip_box(box, size_wh)
    check_box(box_xyxy, size_wh, where)  # a sliver beside the image has no area left
    return clean_text(text), box_xyxy, str(record.get("category") or "unknown")


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
