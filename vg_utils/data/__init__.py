"""Data sets: records (`examples`), readers (`refer`, `hub`, `jsonl`), the embedded RefScenes, batches.

`load_examples` opens any of them. It imports a reader when it needs it, so importing this package is quick.
"""

from __future__ import annotations

import os
from pathlib import Path

from vg_utils.data.examples import AbsentPhrase, DataError, Expression, GroundingExample, Report, told
from vg_utils.data.images import load_image, readable
from vg_utils.data.records import first_bytes, many_objects

__all__ = [
    "AbsentPhrase",
    "DataError",
    "Expression",
    "GroundingExample",
    "Report",
    "load_examples",
    "load_image",
]


def load_examples(
    data: str | Path,
    split: str,
    partition: str | None = None,
    strict: bool = True,
    report: Report | None = None,
    require_images: bool = True,
    check_images: bool = False,
) -> list[GroundingExample]:
    """Read one split of a data set, whatever its layout (`data/README.md` shows the three).

    Args:
        data: a `.jsonl` file or a folder with `SPLIT.jsonl` (own data); a folder with `instances.json` in
            itself or in `annotations/` (RefCOCO, RefCOCO+, RefCOCOg, RefScenes); or a folder with the hub's
            parquet files and the images in `images/`.
        split: `train`, `val`, `test` or another that the data set has.
        partition: `umd`, `google`, `unc`, for the second layout only; see `refer.load_refer`.
        strict: raise on the first bad record; else leave bad records out and count them in `report`.
        report: filled with what was left out.
        require_images: a missing image is a bad record (own data always need theirs, for the size).
        check_images: an image that does not decode, or has another size than its record states, is a bad
            record as well: each is decoded once, at the smallest scale that its format can do.

    Raises:
        DataError: nothing readable there (the message says what was looked for, and how another tool's format
            is converted), or as the readers say.
    """
    data = Path(data)
    with told(report, data, split) as report:
        try:
            with many_objects():
                examples = _read(data, split, partition, require_images, {"strict": strict, "report": report})
        except DataError as error:
            from vg_utils.data.convert.recognise import told_to_convert

            if message := told_to_convert(data):
                raise DataError(f"{message} (as it is: {error})") from error
            raise
        return readable(examples, strict, report) if check_images else examples


def _read(
    data: Path, split: str, partition: str | None, require_images: bool, options: dict
) -> list[GroundingExample]:
    """The examples of the reader that the layout asks for."""
    if data.exists() and not data.is_dir() and not data.is_file():  # a pipe or a device would never end
        raise DataError(f"{data}: expected a folder or a file, found something else")
    if data.is_file() or (data / f"{split}.jsonl").is_file():
        from vg_utils.data.jsonl import load_jsonl

        return load_jsonl(data, split, **options)
    if any((data / place / "instances.json").is_file() for place in ("annotations", ".")):
        from vg_utils.data.refer import load_refer

        return load_refer(data, split, partition, require_images=require_images, **options)
    if any(any((data / place).glob("*.parquet")) for place in (".", "data")):
        from vg_utils.data.hub import load_hub

        return load_hub(data, split, data / "images", require_images=require_images, **options)
    raise DataError(_nothing_there(data, split))


def _nothing_there(data: Path, split: str) -> str:
    found = "no such folder"
    if data.is_dir():
        found = ", ".join(sorted(os.listdir(data))[:10]) or "an empty folder"
    return (
        f"{data}: expected a .jsonl file, or a folder with {split}.jsonl, with annotations/instances.json or "
        f"instances.json, or with *.parquet files; found {found}"
    )


def dataset_name(root: str | Path) -> str:
    """What a data set is called in results: its folder's name, and RefScenes by its own."""
    info = Path(root) / "annotations" / "instances.json"
    if info.is_file() and b'"RefScenes' in first_bytes(info, 500):
        return "RefScenes"
    return Path(root).stem
