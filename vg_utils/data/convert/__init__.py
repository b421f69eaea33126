"""`prepare jsonl`: boxes with phrases or class names, as other tools write them, become JSON lines.

A format is one file with a function that yields an `Item` a box, and a line in `FORMATS`. `writing` does what
is the same for all: it checks, keeps the phrases that mean one box, gives every image a split, and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vg_utils.data.convert.coco import read_coco
from vg_utils.data.convert.cvat import read_cvat
from vg_utils.data.convert.items import Item
from vg_utils.data.convert.labelme import read_labelme
from vg_utils.data.convert.odvg import read_odvg
from vg_utils.data.convert.rows import items_of_dataset, items_of_frame, read_saved, read_table
from vg_utils.data.convert.writing import Summary, check_unconverted, write_items
from vg_utils.data.convert.yolo import read_yolo
from vg_utils.data.examples import DataError, Report

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pandas import DataFrame

__all__ = ["FORMATS", "Item", "Summary", "convert", "convert_dataset", "convert_frame"]

# (source, folder of the images or None, report of what could not be read) -> a box each
Reader = Callable[[Path, Path | None, Report], Iterator[Item]]

FORMATS: dict[str, Reader] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "csv": read_table,
    "odvg": read_odvg,
    "hf": read_saved,
}


def convert(source: str | Path, kind: str, root: str | Path, images: str | Path | None = None) -> Summary:
    """Write `train.jsonl`, `val.jsonl` and `test.jsonl` of what another tool wrote; see `write_items`.

    Args:
        source: a file or a folder of that format.
        kind: one of `FORMATS`.
        root: a folder without JSON lines, but for those of the same conversion that was stopped.
        images: folder of the images, where the format's own places are not theirs.

    Raises:
        DataError: nothing of this format there, nothing usable in it, or JSON lines in `root` already.
    """
    source, root = Path(source), Path(root)
    if not source.exists():
        raise DataError(f"{source}: expected data in the format {kind}, found no such file or folder")
    check_unconverted(root, str(source))
    report = Report()
    items = FORMATS[kind](source, None if images is None else Path(images), report)
    return write_items(items, root, report, str(source))


def convert_frame(frame: DataFrame, root: str | Path, images: str | Path = ".") -> Summary:
    """The same of a table with a row a phrase: `image, text` and `x1, y1, x2, y2` or `bbox`.

    Boxes are corners in pixels; `category` and `split` are optional.

    Args:
        frame: an image is a path within `images`, or a dict that holds its `bytes`.
        root: where to.
        images: folder of the images.

    Raises:
        DataError: columns are missing, or as `convert`.
    """
    check_unconverted(Path(root), "the table")
    return write_items(items_of_frame(frame, "the table", Path(images)), Path(root), Report(), "the table")


def convert_dataset(dataset: Dataset | DatasetDict, root: str | Path, images: str | Path = ".") -> Summary:
    """The same of a `datasets.Dataset`, or of a `DatasetDict`, whose names are the splits.

    Columns are those of `convert_frame`; a row may also hold a list of texts and a list of as many boxes, or
    `objects` (a dict of lists `bbox` in COCO's x, y, width, height, and `category`). Images that are stored
    in the data set are written to `root/images`.
    """
    check_unconverted(Path(root), "the data set")
    report = Report()
    items = items_of_dataset(dataset, "the data set", Path(images))
    return write_items(items, Path(root), report, "the data set")
