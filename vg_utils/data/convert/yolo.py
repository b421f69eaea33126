"""YOLO's label files: a class number and shares of the image's sides a line, beside names of the classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vg_utils.data.convert.items import Item, bounds, images_below, pairs, split_named
from vg_utils.data.examples import BadRecord, DataError, Report
from vg_utils.data.images import image_size
from vg_utils.data.records import Record, read_bytes

NAMES = ("classes.txt", "obj.names", "_darknet.labels")  # a name a line, where there is no .yaml file


def read_yolo(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """The boxes of a `.yaml` file, or of a folder with one or with `classes.txt`.

    A line is a class, centre and size; or a class and the corners of a polygon, of which the box is taken.
    """
    settings, file = _settings(source)
    names = settings.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: expected the names of the classes under 'names', got {names!r:.80}")
    is_pose = "kpt_shape" in settings  # keypoints stand behind the box
    found = _by_folder(images or file.parent) if images or "train" not in settings else _named(settings, file)
    for image, split in found:
        places = [image.with_suffix(".txt"), _beside(image), file.parent / "labels" / f"{image.stem}.txt"]
        label = next((place for place in places if place.is_file()), None)
        if label is not None:  # else there is nothing in the image
            yield from _of_image(image, label, names, split, is_pose, report)


def _settings(source: Path) -> tuple[Record, Path]:
    """The content of the .yaml file, or the names that a text file lists, and the file's path."""
    found = [source] if source.is_file() else sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    lists = [source / folder / name for name in NAMES for folder in (".", "labels")]
    found += [path for path in lists if path.is_file()]
    if not found:
        raise DataError(f"{source}: expected a .yaml file or {NAMES[0]} with the names of the classes")
    text = read_bytes(found[0], "the names of the classes").decode(errors="replace")
    if found[0].suffix not in (".yaml", ".yml"):
        return {"names": [line.strip() for line in text.splitlines() if line.strip()]}, found[0]
    import yaml

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{found[0]}: expected YOLO's settings, got: {error}") from error
    return content if isinstance(content, dict) else {}, found[0]


def _by_folder(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The images below a folder, which the names of its folders split."""
    for image in images_below(folder):
        yield image, split_named(str(image.parent.relative_to(folder)))


def _named(settings: Record, file: Path) -> Iterator[tuple[Path, str | None]]:
    """The images of each split, in folders or in text files that list them."""
    root = file.parent / str(settings.get("path") or "")
    for split in ("train", "val", "test"):
        value = settings.get(split)
        for name in value if isinstance(value, list) else [value] if value else []:
            # Roboflow writes ../train/images of train/images: who reads it takes the dots away.
            tried = [root / str(name), file.parent / str(name), file.parent / str(name).removeprefix("../")]
            place = next((path for path in tried if path.exists()), None)
            if place is None:
                raise DataError(f"{file}: expected the images of {split} in {tried[0]}, found no such place")
            listed = images_below(place) if place.is_dir() else _listed(place)
            yield from ((image, split) for image in listed)


def _listed(file: Path) -> list[Path]:
    lines = read_bytes(file, "a list of images").decode(errors="replace").splitlines()
    return [file.parent / line.strip() for line in lines if line.strip()]


def _beside(image: Path) -> Path:
    """`a/images/train/b.jpg` -> `a/labels/train/b.txt`, the last of the folders of that name."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _of_image(
    image: Path, label: Path, names: dict[Any, Any], split: str | None, is_pose: bool, report: Report
) -> Iterator[Item]:
    try:
        width, height = image_size(image)
    except DataError as error:
        report.add(BadRecord("image not readable", f"{label}: expected the image {error}"))
        return
    lines = read_bytes(label, "YOLO's labels").decode(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{label}, line {number}"
        try:
            first, *shares = map(float, line.split())
            category = str(names[int(first)])
        except (ValueError, KeyError, OverflowError):
            if line.strip():
                message = f"{where}: expected the number of a class and shares, got {line!r:.100}"
                report.add(BadRecord("not a label", message))
            continue
        corners = _corners(shares[:4] if is_pose else shares)
        # Shares have six digits: a hundredth of a pixel is what they tell.
        sides = (width, height, width, height)
        box_xyxy = corners and [round(share * side, 2) for share, side in zip(corners, sides, strict=True)]
        yield Item(where, image, box_xyxy, category=category, split=split)


def _corners(shares: list[float]) -> tuple[float, float, float, float] | None:
    """Centre and size, with a confidence or without, or a polygon: corners; None for anything else."""
    if len(shares) in (4, 5):
        x, y, width, height = shares[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return bounds(pairs(shares)) if len(shares) >= 6 and len(shares) % 2 == 0 else None
