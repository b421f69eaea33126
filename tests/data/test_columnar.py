"""Parquet and Arrow: what is too large or damaged is one line; the rest comes whole, in parts."""

import random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vg_utils.data import DataError, load_examples
from vg_utils.data import columnar as columnar_module
from vg_utils.data.columnar import ParquetColumn, check_arrow, open_parquet, parquet_rows
from vg_utils.data.convert import convert
from vg_utils.data.hub import load_hub

ROWS = {"image": ["a.png"] * 9, "text": [f"the mug {i}" for i in range(9)], "bbox": [[1, 2, 30, 40]] * 9}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def write(folder, rows, **options):
    pq.write_table(pa.table(rows), folder / "train.parquet", write_statistics=False, **options)
    return folder / "train.parquet"


def save(folder, compression=None):
    """As `datasets` saves a data set, but compressed if asked for."""
    saved = folder / "saved"
    datasets.Dataset.from_dict(ROWS).save_to_disk(saved)
    (file,) = saved.glob("*.arrow")
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return file


def test_a_group_that_would_be_too_large_is_refused_by_everyone_who_reads_it(folder, monkeypatch):
    rows = ROWS | {"text": ["m" * 1000 + str(i) for i in range(9)]}
    file = write(folder, rows, compression="zstd")
    assert file.stat().st_size < 8000
    monkeypatch.setattr(columnar_module, "LARGEST_GROUP", 8000)
    for read in (
        lambda: convert(file, "csv", folder / "out"),
        lambda: convert(folder, "hf", folder / "out"),
        lambda: load_hub(folder, "train", folder),
        lambda: load_examples(folder, "train"),
    ):
        with pytest.raises(DataError, match=r"expected at most 8,000 bytes in a group of rows.*got 9,\d\d\d"):
            read()
    assert not (folder / "out").exists()
    write(folder, rows, row_group_size=3)  # the same in smaller groups
    assert convert(file, "csv", folder / "out").phrases.total() == 9


def test_too_many_rows_are_refused(folder, monkeypatch):
    monkeypatch.setattr(columnar_module, "MOST_ROWS", 8)
    with pytest.raises(DataError, match=r"train\.parquet: expected at most 8 rows, got 9"):
        open_parquet(write(folder, ROWS))


def test_a_large_value_that_rows_share_is_not_read_for_all_at_once(folder, monkeypatch):
    monkeypatch.setattr(columnar_module, "LARGEST_GROUP", 8000)
    file = write(folder, {"a": ["m" * 2500] * 50})  # in the file it stands once
    parts = list(parquet_rows(file))
    assert max(map(len, parts)) == 3
    assert [row for part in parts for row in part] == [{"a": "m" * 2500}] * 50


def test_values_of_a_column_in_any_order(folder, monkeypatch):
    monkeypatch.setattr(columnar_module, "AT_ONCE", 3)
    column = ParquetColumn(write(folder, {"a": list(range(40)), "b": [0] * 40}, row_group_size=7), "a")
    order = [*range(40), *random.Random(0).choices(range(40), k=60)]
    assert [column(row) for row in order] == order


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_arrow_files_that_are_compressed_are_refused(folder, compression):
    check_arrow(save(folder))
    convert(folder / "saved", "hf", folder / "out", folder)
    with pytest.raises(DataError, match=r"expected an Arrow file that is not compressed"):
        check_arrow(save(folder, compression))
    with pytest.raises(DataError, match=r"expected an Arrow file that is not compressed"):
        convert(folder / "saved", "hf", folder / "other", folder)
    assert not (folder / "other").exists()


@pytest.mark.parametrize("kind", ["csv", "hf"])
def test_damaged_files_are_one_line_or_read_without_what_is_bad(folder, kind):
    file = write(folder, ROWS) if kind == "csv" else save(folder)
    source, whole = file if kind == "csv" else file.parent, file.read_bytes()
    draw, refused = random.Random(0), 0
    for number in range(60):
        at = draw.randrange(len(whole))
        junk = draw.choice((b"", b"\0" * 4, b"\xff" * 4, draw.randbytes(4)))
        file.write_bytes(whole[:at] if number % 5 == 0 else whole[:at] + junk + whole[at + 4 :])
        root = folder / f"out-{number}"
        try:
            convert(source, kind, root, folder)
            load_examples(root, "train")
        except DataError as error:
            refused += "\n" not in str(error) and str(folder) in str(error)
            assert not root.exists()
    assert refused > 20


def test_tables_in_each_other_without_end(folder):
    deep = pa.array([1.5])
    for _ in range(600):
        deep = pa.ListArray.from_arrays([0, 1], deep)
    file = write(folder, {"image": ["a.png"], "text": ["the mug"], "bbox": deep})
    with pytest.raises(DataError):
        convert(file, "csv", folder / "out")


def test_cells_that_are_json_without_end(folder):
    (folder / "a.csv").write_text(f'image,text,bbox\na.png,the mug,"{"[" * 100_000}"\n')
    with pytest.raises(DataError, match="found none to use"):
        convert(folder / "a.csv", "csv", folder / "out")
