"""What all formats come down to, a box of an image with what is said of it, and helps to read them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vg_utils.data.examples import DataError
from vg_utils.data.images import IMAGE_ENDINGS
from vg_utils.data.records import BOX, TEXT, shown

# Under which people keep a phrase, in the order in which they are asked.
PHRASE_KEYS = ("expression", "phrase", "sentence", "caption", "text", "description")
PHRASE_KEYS += ("expressions", "phrases", "sentences", "captions", "texts")
_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")


class Item(NamedTuple):
    """One box of one image.

    Attributes:
        where: file and place, for messages.
        image: path of the image.
        box_xyxy: corners (x1, y1, x2, y2) in pixels; anything else is counted as no box.
        texts: what the source says of it; none where it has a class name alone.
        category: its class, "" if the source does not say.
        split: `train`, `val` or `test`; None where the source does not say.
        size_wh: width and height of the image in pixels, as the source states them; None if it does not.
        many: it stands for several objects, as a crowd: no phrase means it.
        content: gives the bytes of an image that is stored in the source; `image` is then the path within
            `root` to write them to.
    """

    where: str
    image: Path
    box_xyxy: Any
    texts: tuple[str, ...] = ()
    category: str = ""
    split: str | None = None
    size_wh: tuple[int, int] | None = None
    many: bool = False
    content: Callable[[], bytes] | None = None


def split_named(name: str) -> str | None:
    """The split that a file or folder is named after: "train2017", "valid/", "my_test.json"; else None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def texts_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The phrases in a record: a text, a list of them, or refer's sentences (`sent`, `raw`)."""
    found: list[str] = []
    for key in PHRASE_KEYS:
        if key not in record:
            continue
        value = record[key]
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, dict):
                one = one.get("sent") or one.get("raw")
            if TEXT.fits(one) and one.strip():
                found.append(one)
    return tuple(found)


def find_image(name: str, folders: Iterable[Path]) -> Path:
    """The file of this name in the first folder that has it, whatever folders stand before the name.

    Where none has it, the place in the first folder, which is then found to be missing.
    """
    name, folders = name.replace("\\", "/"), list(folders)  # written on Windows
    tried = [folder / part for part in (name, Path(name).name) for folder in folders]
    return next((path for path in tried if os.path.isfile(path)), tried[0])


def files_of(source: Path, endings: Sequence[str], what: str) -> list[Path]:
    """The source itself, or the files with these endings in the folder and below, in order.

    Raises:
        DataError: there are none.
    """
    files = [source] if source.is_file() else _below(source, endings)
    if not files:
        raise DataError(f"{source}: expected {what}, found none")
    return files


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and below, in order."""
    return _below(folder, IMAGE_ENDINGS)


def _below(folder: Path, endings: Sequence[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.lower().endswith(tuple(endings)))


def corners_of(bbox_xywh: Any) -> Any:
    """COCO's x, y, width, height as corners; what is no box comes back as a text, and is counted as none."""
    if not BOX.fits(bbox_xywh):
        return shown(bbox_xywh)
    x, y, width, height = bbox_xywh
    return x, y, x + width, y + height


def bounds(points: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """The box around points (x, y): corners (x1, y1, x2, y2). Raises a ValueError if there are none."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def pairs(numbers: Sequence[float]) -> Iterator[tuple[float, float]]:
    """x, y, x, y, ... as points."""
    return zip(numbers[::2], numbers[1::2], strict=True)
