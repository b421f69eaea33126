"""Pickles of plain data: written without any class, so that they are read without running any code.

Any version of Python and pandas reads them: pandas 2.2 cannot read a frame that pandas 3.1 pickled as it is.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vg_utils.data.plain_pickle import read_plain
from vg_utils.files import write_atomically

_BUILTINS = (type(None), bool, int, float, str)


def write_pickle(path: Path, value: Any) -> None:
    """Pickle a value as plain data, see `to_plain`; to a temporary name, then renamed."""
    write_atomically(Path(path), pickle.dumps(to_plain(value), protocol=4))


def read_pickle(path: Path | str) -> Any:
    """What `write_pickle` wrote: numbers, strings, lists, dicts. A table is a dict of its columns.

    Raises:
        DataError: no such file, a damaged one, or one that asks for code to be run.
    """
    return read_plain(Path(path), "a pickle of plain data")


def to_plain(value: Any) -> Any:
    """The value in builtin types alone.

    numpy's numbers become Python's, arrays and tuples lists, paths strings. A frame becomes a dict of lists,
    a column each, its index one of them where it has a name; pandas' own missing values become None.

    Raises:
        TypeError: a value of any other type.
    """
    if type(value) in _BUILTINS:
        return value
    if isinstance(value, dict):
        return {to_plain(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, pd.DataFrame):
        frame = value.reset_index() if value.index.name else value
        return {to_plain(name): to_plain(column) for name, column in frame.items()}
    if isinstance(value, pd.Series | np.ndarray | np.generic):
        return to_plain(value.tolist())
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"expected plain data to pickle, got {type(value).__module__}.{type(value).__qualname__}")
