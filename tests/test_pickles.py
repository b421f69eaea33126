"""Pickles of plain data: what is written comes back, of builtins alone; what would run is refused."""

import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vg_utils.data import DataError
from vg_utils.pickles import read_pickle, to_plain, write_pickle

SHIPPED = sorted((Path(__file__).parents[1] / "experiments").glob("*.pkl"))


def test_tables_become_columns_and_numbers_pythons(tmp_path):
    rows = pd.DataFrame({"iou": np.float16([0.5, 0.25]), "family": pd.Categorical(["a", "b"])})
    rows = rows.assign(distractors=pd.array([1, None], dtype="Int64"))
    by = pd.DataFrame({"n": [3]}, index=pd.Index(["place"], name="family"))
    value = {"rows": rows, "by": by, "n": np.int64(3), "box": (np.float32(0.5), 1), "run": Path("runs/a")}
    write_pickle(tmp_path / "results.pkl", value)
    content = (tmp_path / "results.pkl").read_bytes()
    assert not any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(content))
    held = read_pickle(tmp_path / "results.pkl")
    assert held == {
        "rows": {"iou": [0.5, 0.25], "family": ["a", "b"], "distractors": [1, None]},
        "by": {"family": ["place"], "n": [3]},
        "n": 3,
        "box": [0.5, 1],
        "run": "runs/a",
    }
    assert pickle.loads(content) == held  # so it is read without this project, too


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"history": [p]}, lambda p: {p: 1}])
def test_what_would_run_is_refused(tmp_path, wrap):
    path, trace = tmp_path / "test.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps(wrap(Payload(trace))))
    with pytest.raises(DataError, match=r"test\.pkl: expected plain data, refused .*mkdir"):
        read_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": [1, 2]})[:-4]])
def test_damaged_ones_are_an_error_of_one_line(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pkl: expected a pickle of plain data, [^\n]*$"):
        read_pickle(tmp_path / "a.pkl")
    with pytest.raises(DataError, match=r"none\.pkl: expected a pickle of plain data"):
        read_pickle(tmp_path / "none.pkl")


def test_what_is_no_plain_data_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"got builtins\.object"):
        write_pickle(tmp_path / "a.pkl", {"a": [object()]})
    assert not list(tmp_path.iterdir())
    assert to_plain({1: None, "a": (2.5,)}) == {1: None, "a": [2.5]}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_results_that_come_with_the_project_are_plain(path):
    assert read_pickle(path)
