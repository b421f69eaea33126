"""ODVG: a JSON object a line, an image with a caption whose phrases have boxes, or with classes' boxes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vg_utils.data.convert.items import Item, files_of, find_image, split_named
from vg_utils.data.examples import BadRecord, DataError, Report
from vg_utils.data.records import LIST, TEXT, WHOLE, Kind, Record, check, checked, parse_json, read_bytes

DICT = Kind("an object", lambda value: isinstance(value, dict))
LINE = {"filename": TEXT}
OF_LINE = {"grounding": DICT, "detection": DICT, "width": WHOLE, "height": WHOLE}
REGION, INSTANCE = {"bbox": LIST}, {"bbox": LIST, "category": TEXT}


def read_odvg(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """The regions of a file, or of those in a folder, which their names split.

    A region has one phrase or a list of them, and one box or a list of them: of several objects then.
    """
    for file in files_of(source, (".jsonl", ".json"), "ODVG's .jsonl file"):
        folders = [images] if images else [file.parent, file.parent / "images", file.parent.parent]
        lines = read_bytes(file, "ODVG's JSON lines").removeprefix(codecs.BOM_UTF8).split(b"\n")
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            try:
                record = parse_json(line, where, "a JSON object") if line.strip() else None
                if record is not None:
                    check(record, LINE, where, OF_LINE)
                    yield from _of_line(record, where, folders, split_named(file.stem), report)
            except BadRecord as error:
                report.add(error)
            except DataError as error:
                report.add(BadRecord("not JSON", str(error)))


def _of_line(
    record: Record, where: str, folders: list[Path], split: str | None, report: Report
) -> Iterator[Item]:
    image, size_wh = find_image(record["filename"], folders), (record.get("width"), record.get("height"))
    shared = {"image": image, "split": split, "size_wh": size_wh if all(size_wh) else None}
    for region in _listed(record, "grounding", "regions", REGION, where, report):
        phrases, boxes = region.get("phrase"), region["bbox"]
        texts = tuple(filter(TEXT.fits, phrases if isinstance(phrases, list) else [phrases]))
        for box in boxes if boxes and isinstance(boxes[0], list) else [boxes]:
            yield Item(where=where, box_xyxy=box, texts=texts, **shared)
    for instance in _listed(record, "detection", "instances", INSTANCE, where, report):
        yield Item(where=where, box_xyxy=instance["bbox"], category=instance["category"], **shared)


def _listed(
    record: Record, part: str, key: str, fields: dict[str, Any], where: str, report: Report
) -> list[Record]:
    records = record.get(part, {}).get(key, [])
    return checked(records if isinstance(records, list) else [], fields, f"{where}, {key}", False, report)
