"""What somebody gave to `--data` that has to be converted first, told by names and first bytes alone."""

from __future__ import annotations

from pathlib import Path

from vg_utils.data.convert.coco import ROBOFLOW
from vg_utils.data.convert.rows import TABLES
from vg_utils.data.convert.yolo import NAMES
from vg_utils.data.records import first_bytes

HEAD = 4000  # bytes of a file
A_FEW = 20  # files of a folder that are looked at
OF_ENDING = dict.fromkeys(TABLES, "csv") | {".xml": "cvat", ".yaml": "yolo", ".yml": "yolo"}
OF_NAME = dict.fromkeys(("dataset_info.json", "dataset_dict.json"), "hf") | {ROBOFLOW: "coco"}
OF_NAME |= dict.fromkeys((*NAMES, "data.yaml"), "yolo")


def format_of(path: Path) -> str | None:
    """The format that `prepare jsonl` would convert; None for what needs no conversion, or is unknown."""
    if path.is_file():
        return _of_file(path)
    places = (path, path / "annotations", *sorted(path.glob("*/")))
    files = [file for place in places for file in sorted(place.glob("*"))[:A_FEW] if file.is_file()]
    if any(file.suffix == ".p" or file.name.startswith("grefs") for file in files):
        return None  # RefCOCO's family
    by_name = [OF_NAME[file.name] for file in files if file.name in OF_NAME]
    return next(iter(by_name), None) or next(filter(None, map(_of_file, files)), None)


def _of_file(file: Path) -> str | None:
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_schema

        return None if "ref_id" in read_schema(file).names else "csv"  # the hub's RefCOCO
    if file.suffix not in (".json", ".jsonl"):
        return OF_ENDING.get(file.suffix)
    head = first_bytes(file, HEAD)
    if b'"filename"' in head and (b'"grounding"' in head or b'"detection"' in head):
        return "odvg"
    if file.suffix == ".jsonl":
        return None
    return "labelme" if b'"shapes"' in head else "coco" if b'"images"' in head else None


def told_to_convert(path: Path) -> str:
    """An error's message for data of a format that has to be converted; "" where no such format is known."""
    try:
        kind = format_of(path)
    except Exception:  # of a damaged file: the error at hand says more
        kind = None
    if kind is None:
        return ""
    command = f"python -m vg_utils prepare jsonl --from {kind} {path} --root FOLDER"
    return (
        f"{path}: this looks like the format {kind}; convert it with {command}, and use that folder as data"
    )
