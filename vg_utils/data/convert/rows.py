"""Tables: a data frame, a `.csv`, `.tsv` or `.parquet` file, a data set of the library `datasets`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vg_utils.data.columnar import (
    ParquetColumn,
    check_arrow,
    open_parquet,
    parquet_rows,
    told_in_a_line,
)
from vg_utils.data.convert.items import (
    PHRASE_KEYS,
    Item,
    corners_of,
    files_of,
    find_image,
    split_named,
    texts_of,
)
from vg_utils.data.examples import DataError, Report
from vg_utils.data.records import Record, parse_json, read_bytes, shown

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pandas import DataFrame

IMAGE_KEYS = ("image", "image_path", "file_name", "filename", "path")
CORNER_KEYS = ("x1", "y1", "x2", "y2")
BOX_KEYS = ("bbox", "box", "box_xyxy")
CLASS_KEYS = ("category", "label", "class")
TABLES = (".csv", ".tsv", ".parquet")
AT_ONCE = 1000  # rows


def read_table(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """The rows of a file, or of those in a folder, which their names split."""
    for file in files_of(source, TABLES, "a table (.csv, .tsv, .parquet)"):
        read = _of_parquet if file.suffix == ".parquet" else _of_text
        yield from read(file, images or file.parent, split_named(file.stem))


def _of_parquet(file: Path, images: Path, split: str | None) -> Iterator[Item]:
    columns = _columns(open_parquet(file).schema_arrow.names, str(file))
    stored, folders, start = _stored(ParquetColumn(file, columns["image"])), [images, images / "images"], 0
    for rows in parquet_rows(file):
        yield from _items(rows, columns, f"{file}, row", start, folders, split, stored=stored)
        start += len(rows)


def _of_text(file: Path, images: Path, split: str | None) -> Iterator[Item]:
    import pandas as pd  # late, as all that is imported here: it takes a second

    content = io.BytesIO(read_bytes(file, "a table"))
    with told_in_a_line(file, "a table"):
        frame = pd.read_csv(content, sep="\t" if file.suffix == ".tsv" else ",", encoding="utf-8-sig")
    yield from items_of_frame(frame, str(file), images, split)


def items_of_frame(frame: DataFrame, name: str, images: Path, split: str | None = None) -> Iterator[Item]:
    """A box a row; `name` is the table's in messages."""
    columns = _columns(list(frame.columns), name)
    for start in range(0, len(frame), AT_ONCE):
        rows = frame.iloc[start : start + AT_ONCE].to_dict("records")
        yield from _items(rows, columns, f"{name}, row", start, [images, images / "images"], split)


def read_saved(source: Path, images: Path | None, report: Report) -> Iterator[Item]:
    """A data set that `save_to_disk` wrote, or any folder that `load_dataset` reads."""
    import datasets

    for file in source.rglob("*.parquet"):
        open_parquet(file)
    for file in source.rglob("*.arrow"):
        check_arrow(file)
    saved = (source / "dataset_info.json").is_file() or (source / "dataset_dict.json").is_file()
    with told_in_a_line(source, "a data set of the library datasets"):
        dataset = datasets.load_from_disk(source) if saved else datasets.load_dataset(str(source))
        yield from items_of_dataset(dataset, str(source), images or source)


def items_of_dataset(dataset: Dataset | DatasetDict, name: str, images: Path) -> Iterator[Item]:
    """The boxes of each row; `name` is the data set's in messages."""
    import datasets

    if isinstance(dataset, dict):
        for split, part in dataset.items():
            yield from _of_part(part, f"{name}, {split}", images, split_named(split))
    elif isinstance(dataset, datasets.Dataset):
        yield from _of_part(dataset, name, images, split_named(str(dataset.split or "")))
    else:
        raise DataError(f"{name}: expected a datasets.Dataset or DatasetDict, got {type(dataset).__name__}")


def _of_part(dataset: Dataset, name: str, images: Path, split: str | None) -> Iterator[Item]:
    import datasets

    columns = _columns(dataset.column_names, name)
    image = columns["image"]
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    names = _class_names(dataset, columns)
    dataset = dataset.with_format(None)
    for start in range(0, len(dataset), AT_ONCE):
        batch = dataset[start : start + AT_ONCE]  # a list a column
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        stored = _stored(lambda row: dataset[row][image])
        folders = [images, images / "images"]
        yield from _items(rows, columns, f"{name}, row", start, folders, split, names, stored)


def _stored(value: Callable[[int], Record]) -> Callable[[int], bytes]:
    """The bytes of a row's image, read again when they are wanted: all would not fit into the memory."""
    return lambda row: value(row)["bytes"]


def _class_names(dataset: Dataset, columns: Mapping[str, str]) -> list[str]:
    """The names of the classes where a column holds their numbers."""
    feature = dataset.features.get(columns.get("category", ""))
    if "objects" in columns:
        objects = dataset.features["objects"]
        objects = getattr(objects, "feature", objects)  # a list of objects, or lists of their fields
        feature = next((objects[key] for key in CLASS_KEYS if key in objects), None)
    while hasattr(feature, "feature"):  # a list of them
        feature = feature.feature
    return list(getattr(feature, "names", None) or [])


def _columns(names: list[str], table: str) -> dict[str, str]:
    """Which column is what: `image`; the box in `box`, `corners` or `objects`; `text`, `category`, `split`.

    Raises:
        DataError: no image, no box or nothing to say of it.
    """

    def one_of(keys: Iterable[str]) -> str | None:
        return next((key for key in keys if key in names), None)

    corners = "corners" if all(key in names for key in CORNER_KEYS) else None
    found = {"image": one_of(IMAGE_KEYS), "corners": corners, "box": one_of(BOX_KEYS)}
    found |= {
        "objects": one_of(["objects"]),
        "text": one_of(PHRASE_KEYS),
        "category": one_of(CLASS_KEYS),
        "split": one_of(["split"]),
    }
    boxed = found["corners"] or found["box"] or found["objects"]
    said = found["category"] or found["objects"] or found["text"]
    if not (found["image"] and boxed and said):
        raise DataError(
            f"{table}: expected the columns image, text, and x1, y1, x2, y2 or bbox, got {shown(names)}"
        )
    return {part: name for part, name in found.items() if name}


def _items(
    rows: list[Record],
    columns: Mapping[str, str],
    where: str,
    start: int,
    folders: list[Path],
    split: str | None,
    names: list[str] | None = None,
    stored: Callable[[int], bytes] | None = None,
) -> Iterator[Item]:
    """The boxes of rows, the first of which is number `start`."""
    for number, row in enumerate(rows, start=start):
        place = f"{where} {number}"
        own = split_named(str(row[columns["split"]])) if "split" in columns else split
        image, content = _image(row[columns["image"]], folders, number, stored)
        for box, texts, category in _said(row, columns):
            if names and isinstance(category, int):
                category = names[category] if 0 <= category < len(names) else ""
            yield Item(
                place, image, box, texts, category if isinstance(category, str) else "", own, content=content
            )


def _image(
    value: Any, folders: list[Path], number: int, stored: Callable[[int], bytes] | None
) -> tuple[Path, Callable[[], bytes] | None]:
    """The file of a row's image, or the name that its bytes get and what gives them."""
    if not isinstance(value, dict):
        return find_image(str(value), folders), None
    data, name = value.get("bytes"), str(value.get("path") or "")
    if not isinstance(data, bytes):
        return find_image(name, folders), None
    # By the content: rows about one image share it, and it is in one split whatever stands beside it.
    ending = Path(name).suffix or (".png" if data.startswith(b"\x89PNG") else ".jpg")
    path = Path("images") / f"{hashlib.sha256(data).hexdigest()[:16]}{ending}"
    return path, partial(stored, number) if stored else lambda: data


def _said(row: Record, columns: Mapping[str, str]) -> Iterator[tuple[Any, tuple[str, ...], Any]]:
    """Box, phrases and class of each object of a row."""
    if "objects" in columns:
        yield from _objects(_plain(row["objects"]))
        return
    box = [row[key] for key in CORNER_KEYS] if "corners" in columns else _numbers(row[columns["box"]])
    said, category = (_plain(row.get(columns.get(part, ""))) for part in ("text", "category"))
    if not (isinstance(box, list) and box and isinstance(box[0], list)):
        yield box, texts_of({"text": said}), category
        return
    texts, classes = (v if isinstance(v, list) else [v] * len(box) for v in (said, category))
    if len(texts) != len(box) or len(classes) != len(box):
        yield None, texts_of({"text": texts}), ""  # which belongs to which?
        return
    for one, text, name in zip(box, texts, classes, strict=True):
        yield one, texts_of({"text": text}), name


def _objects(objects: Any) -> Iterator[tuple[Any, tuple[str, ...], Any]]:
    """The objects of a row of a detection data set: boxes are x, y, width, height there."""
    if isinstance(objects, dict):
        lists = {key: values for key, values in objects.items() if isinstance(values, list)}
        objects = [dict(zip(lists, values, strict=False)) for values in zip(*lists.values(), strict=False)]
    for one in objects if isinstance(objects, list) else []:
        category = next((one[key] for key in CLASS_KEYS if key in one), None)
        yield corners_of(one.get("bbox")), texts_of(one), category


def _numbers(value: Any) -> Any:
    """A box as a list, which a table may hold as a text: "[1, 2, 3, 4]" or "1 2 3 4"."""
    if not isinstance(value, str):
        return _plain(value)
    try:
        return parse_json(value.encode(errors="replace"), "a cell", "a box")
    except DataError:
        pass
    try:
        return [float(word) for word in value.strip("[]() ").replace(",", " ").split()]
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    """numpy's arrays and numbers, as parquet files give them, as Python's."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
