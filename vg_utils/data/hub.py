"""RefCOCOg as Hugging Face has it: `jxu124/refcocog`, or parquet files of the same columns.

A row is one reference. Its top-level `bbox` is corners (x1, y1, x2, y2), while the `bbox` inside the JSON
string `raw_anns` is COCO's x, y, width, height; both are compared, so that a file which mixes them up is
refused. There are no images in it and no objects besides the referred ones. Rows are turned into the
records of RefCOCOg's own files and read by `refer.build_examples`, so both sources give the same examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vg_utils.data.columnar import parquet_rows
from vg_utils.data.examples import BadRecord, DataError, GroundingExample, Report, told
from vg_utils.data.records import ANYTHING, BOX, TEXT, Record, check, parse_json, shown
from vg_utils.data.refer import build_examples
from vg_utils.data.refer_files import REF, write_refer
from vg_utils.data.refer_index import ANNOTATION, IMAGE

BOX_AGREEMENT_PX = 0.1  # both boxes come from the same numbers: only rounding may part them

_COLUMNS = ("ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sent_ids", "sentences")
_JSON_COLUMNS = ("raw_anns", "raw_image_info")
ROW = dict.fromkeys(_COLUMNS, ANYTHING) | REF | dict.fromkeys(_JSON_COLUMNS, TEXT) | {"bbox": BOX}


def load_hub(
    source: str | Path,
    split: str,
    images_dir: str | Path,
    *,
    strict: bool = True,
    require_images: bool = True,
    report: Report | None = None,
) -> list[GroundingExample]:
    """Read one split, with the same result as `refer.load_refer` gives for RefCOCOg's own files.

    The number of distractors stays None, since the hub does not list the objects nobody refers to.

    Args:
        source: name on the hub, or a folder with parquet files (in itself or in `data/`).
        split: `train`, `val`, `test` (`testA`, `testB`), as the column `split` calls them; the hub calls its
            own division `validation` where the rows say `val`.
        images_dir: the folder of the images.
        strict, require_images, report: see `load_refer`.

    Raises:
        DataError: the source cannot be had, a row misses a column or has two boxes that do not agree, an
            unknown split, or (strict) a bad record.
    """
    with told(report, source, split) as report:
        instances, refs = to_refer(_rows(source), str(source), strict, report)
        return build_examples(
            instances,
            refs,
            split,
            [Path(images_dir)],
            source=str(source),
            strict=strict,
            require_images=require_images,
            report=report,
        )


def hub_to_refer(source: str | Path, root: str | Path, partition: str = "umd") -> Path:
    """Write the hub's rows as RefCOCOg's own files under `root`, so that everything after has one reader.

    Args:
        source: see `load_hub`.
        root: gets `annotations/instances.json` and `annotations/refs(PARTITION).p`.
        partition: the partition the rows belong to: `umd` for RefCOCOg, `unc` for RefCOCO and RefCOCO+.

    Returns:
        The folder `root/annotations`.

    Raises:
        DataError: see `load_hub`.
    """
    instances, refs = to_refer(_rows(source), str(source))
    return write_refer(root, partition, instances, refs)


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for place in (folder, folder / "data") for path in place.glob("*.parquet"))


def _rows(source: str | Path) -> Iterator[Record]:
    """The rows of all divisions, as dicts."""
    files = _parquet_files(Path(source))
    if not files and Path(source).is_dir():
        raise DataError(f"{source}: expected parquet files in it or in its data/, found none")
    for file in files:  # what lies here already needs no second copy in a cache
        for rows in parquet_rows(file):
            yield from rows
    if files:
        return
    import datasets  # late: it takes seconds to import, and own data does not need it

    try:
        for division in datasets.load_dataset(str(source)).values():
            yield from division
    except Exception as error:  # the hub's clients raise errors of many libraries
        raise DataError(_ways_out(source, error)) from error


def _ways_out(source: str | Path, error: Exception) -> str:
    return (
        f"{source}: expected a data set on Hugging Face or a folder of its parquet files, got "
        f"{type(error).__name__}: {error}\n"
        "Ways out: check the connection and run again; set HF_ENDPOINT to a mirror; name a folder with the "
        "parquet files as the source; put instances.json and refs(umd).p into annotations/ of the folder; "
        "or use RefScenes, which needs no download (python -m vg_utils prepare scenes)"
    )


def to_refer(
    rows: Iterable[Record], source: str, strict: bool = True, report: Report | None = None
) -> tuple[Record, list[Record]]:
    """The content of `instances.json` and `refs(PARTITION).p` for the rows.

    A bad row is an error that names it if `strict`, else left out and counted in `report`.
    """
    images: dict[int, Record] = {}
    annotations: dict[int, Record] = {}
    refs, report = [], Report() if report is None else report
    for number, row in enumerate(rows):
        try:
            annotation, image = _parts(row, f"{source}, row {number}, ref {shown(row.get('ref_id'))}")
        except BadRecord as error:
            report.handle(error, strict)
            continue
        annotations[row["ann_id"]] = annotation
        images[row["image_id"]] = image
        refs.append({column: row[column] for column in _COLUMNS})
    instances = {
        "info": {"description": f"from {source}: referred objects only", "lists_all_objects": False},
        "images": list(images.values()),
        "licenses": [],
        "annotations": list(annotations.values()),
        "categories": coco_categories(),
    }
    return instances, refs


def _parts(row: Record, where: str) -> tuple[Record, Record]:
    """The annotation and the image of a row. Raises a BadRecord unless all speak of the same object."""
    check(row, ROW, where)
    annotation, image = (_parse(row[column], f"{where}, {column}") for column in _JSON_COLUMNS)
    check(annotation, ANNOTATION | {"bbox": BOX}, f"{where}, raw_anns")
    check(image, IMAGE, f"{where}, raw_image_info")
    ids = (annotation["id"], annotation["image_id"], image["id"])
    if ids != (row["ann_id"], row["image_id"], row["image_id"]):
        raise BadRecord(
            "row of two objects",
            f"{where}: expected annotation {row['ann_id']} of image {row['image_id']}, got annotation "
            f"{ids[0]} of image {ids[1]} beside the record of image {ids[2]}",
        )
    x, y, width, height = annotation["bbox"]
    pairs = zip(row["bbox"], (x, y, x + width, y + height), strict=True)
    if not all(abs(a - b) <= BOX_AGREEMENT_PX for a, b in pairs):
        raise BadRecord(
            "two boxes",
            f"{where}: expected bbox as corners and raw_anns' bbox as x, y, width, height of the same box, "
            f"got {row['bbox']} and {annotation['bbox']}",
        )
    return annotation, image


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text.encode(), where, f"a JSON object, not {shown(text)}")
    except DataError as error:
        raise BadRecord("not JSON", str(error)) from error


def coco_categories() -> list[Record]:
    """COCO's 80 categories as `instances.json` lists them (`id`, `name`); the hub has only their ids."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights  # late: it imports torch

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # indexed by COCO's ids, gaps are N/A
    return [{"id": i, "name": name} for i, name in enumerate(names) if name not in ("__background__", "N/A")]
