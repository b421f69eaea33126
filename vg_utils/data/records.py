"""Records as files hold them: reading them, and the one place that checks their types.

A fault becomes one line that names file, place and key, whatever the value is: a list where an id is meant,
an integer of 400 digits, a thousand lists in each other.
"""

from __future__ import annotations

import gc
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from vg_utils.data.examples import LARGEST_PX, BadRecord, DataError, Report, one_line

Record = dict[str, Any]

SHOWN = 100  # characters of a value in a message
LARGEST_BYTES = 2 * 2**30  # of a file of annotations: the largest that people publish have one GB and a half
LARGEST_SETTINGS = 16 * 2**20  # of a file of settings
DEEPEST = 400  # lists and objects in each other
_ESCAPED, _STRING = re.compile(rb"\\.", re.DOTALL), re.compile(rb'"[^"]*"?')
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_MISSING = object()


class Kind(NamedTuple):
    """What a field has to be: its name in messages, and the check, which raises nothing.

    Of kinds that come a million times `fit_at_once` tells of many values whether they surely fit; else each
    is asked.
    """

    name: str
    fits: Callable[[Any], bool]
    fit_at_once: Callable[[list], bool] = lambda values: False


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which nobody can print
        return False


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63  # True and False are no numbers here


def _is_box(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    return all(type(side) in (int, float) and -LARGEST_PX <= side <= LARGEST_PX for side in value)


def _are_whole(values: list) -> bool:
    return set(map(type, values)) == {int} and min(values) >= -(2**63) and max(values) < 2**63


def _are_ascii(values: list) -> bool:
    return set(map(type, values)) == {str} and all(map(str.isascii, values))


def are_four_numbers(values: list) -> bool:
    """Whether each value is a list of four numbers, of any size and NaN among them."""
    if set(map(type, values)) != {list} or set(map(len, values)) != {4}:
        return False
    return set(map(type, chain.from_iterable(values))) <= {int, float}


def _are_boxes(values: list) -> bool:
    if not are_four_numbers(values):
        return False
    try:
        sides = np.array(list(chain.from_iterable(values)), float)
        return bool((np.abs(sides) <= LARGEST_PX).all())  # which no NaN is
    except OverflowError:  # integers of hundreds of digits
        return False


WHOLE = Kind("a whole number", _is_whole, _are_whole)
TEXT = Kind("text", _is_text, _are_ascii)
ANYTHING = Kind("anything", lambda value: value is not _MISSING)
LIST = Kind("a list", lambda value: isinstance(value, list))
BOX = Kind("four finite numbers", _is_box, _are_boxes)

Fields = Mapping[str, Kind]


def fault_of(record: Any, fields: Fields, optional: Fields | None = None) -> tuple[str, str] | None:
    """What is wrong with a record: the reason, and what was expected and came; None if it has these fields.

    Optional fields may be missing.
    """
    if not isinstance(record, dict):
        return "not a record", f"expected a dict, got {type(record).__name__}"
    for key, kind in fields.items():
        if not kind.fits(record.get(key, _MISSING)):
            return _bad_field(record, key, kind) if key in record else _missing(record, fields)
    for key, kind in optional.items() if optional else ():
        if key in record and not kind.fits(record[key]):
            return _bad_field(record, key, kind)
    return None


def _bad_field(record: Record, key: str, kind: Kind) -> tuple[str, str]:
    return f"{key} is not {kind.name}", f"expected {kind.name} under {key!r}, got {shown(record[key])}"


def _missing(record: Record, keys: Iterable[str]) -> tuple[str, str]:
    missing = ", ".join(key for key in keys if key not in record)
    found = ", ".join(shown(key).strip("'") for key in list(record)[:20])
    return "missing keys", f"expected the keys {missing}, got only {found}"


def check(record: Any, fields: Fields, where: str, optional: Fields | None = None) -> None:
    """Raise a BadRecord unless the record is a dict with these fields (optional ones may be missing)."""
    fault = fault_of(record, fields, optional)
    if fault is not None:
        raise BadRecord(fault[0], f"{where}: {fault[1]}")


def checked(
    records: Iterable[Any],
    fields: Fields,
    where: str,
    strict: bool = True,
    report: Report | None = None,
    optional: Fields | None = None,
) -> list[Record]:
    """The records that have these fields; the first other one is an error if `strict`, else all are counted.

    The first of the fields is a record's own id, which an error names.
    """
    records = list(records)
    if all_fit(records, fields, optional):
        return records
    report, own_id, kept = Report() if report is None else report, next(iter(fields)), []
    for position, record in enumerate(records):
        fault = fault_of(record, fields, optional)
        if fault is None:
            kept.append(record)
            continue
        entry = f"{where}, entry {position}"
        if isinstance(record, dict) and own_id in record:
            entry += f", {own_id} {shown(record[own_id])}"
        report.handle(BadRecord(fault[0], f"{entry}: {fault[1]}"), strict)
    return kept


def all_fit(records: list, fields: Fields, optional: Fields | None = None) -> bool:
    """Whether all have the fields, asked field by field, which is many times as fast."""
    try:
        columns = [(kind, [record[key] for record in records]) for key, kind in fields.items()]
        for key, kind in (optional or {}).items():
            columns.append((kind, [record[key] for record in records if key in record]))
    except (KeyError, TypeError, IndexError):  # one lacks the field, or is no dict
        return False
    return all(kind.fit_at_once(values) or all(map(kind.fits, values)) for kind, values in columns)


class _Short(reprlib.Repr):
    """`reprlib` for values that hostile files hold."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = SHOWN
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 5, 5, 5


def shown(value: Any) -> str:
    """A value in a message: its repr on one line, cut to about a hundred characters."""
    try:
        return one_line(_Short().repr(value), SHOWN)
    except Exception:  # Python refuses to print integers of more than 4,300 digits, for one
        return f"a value of type {type(value).__name__} that cannot be printed"


def read_bytes(path: Path, what: str, most: int = LARGEST_BYTES) -> bytes:
    """A file's content; `what` names it in the error if it is missing, unreadable or no regular file.

    So it is in the error if the file has more than `most` bytes.
    """
    if not path.is_file():  # a pipe or a device would never end
        found = "something that is no regular file" if path.exists() else "no such file"
        raise DataError(f"{path}: expected {what}, found {found}")
    try:
        if (size := path.stat().st_size) > most:
            raise DataError(f"{path}: expected {what} in at most {most:,} bytes, got {size:,}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected {what}, got: {error.strerror or error}") from error


def first_bytes(path: Path, count: int) -> bytes:
    """The beginning of a file."""
    with path.open("rb") as file:
        return file.read(count)


def parse_json(text: bytes, where: str, what: str) -> Any:
    """The value of a JSON text, which everything from outside is read with.

    Raises:
        DataError: it is no JSON, or is nested deeper than `DEEPEST`.
    """
    if _is_deep(text):
        raise DataError(f"{where}: expected {what}, got lists or objects nested more than {DEEPEST} deep")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # or NaN, which Python writes; and Python's messages say where
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected {what}, got: {error}") from error


def _is_deep(text: bytes) -> bool:
    """Whether it is nested deeper than `DEEPEST`, told from the brackets alone, before anything is built.

    Python's own limit is another one in each version, and what it lets pass may be too deep for who walks
    the value afterwards.
    """
    if text.count(b"[") + text.count(b"{") <= DEEPEST:  # of a line, say
        return False
    if b"\\" in text:
        text = _ESCAPED.sub(b"", text)
    brackets = text.translate(_ONE_KIND, _NO_BRACKETS).replace(b'""', b"")  # most texts have no brackets
    brackets = _STRING.sub(b"", brackets)
    for _ in range(DEEPEST):  # the innermost go
        inner, brackets = len(brackets), brackets.replace(b"[]", b"")
        if len(brackets) == inner:
            return False
    return bool(brackets)


def read_json(path: Path, what: str, most: int = LARGEST_BYTES) -> Any:
    """The value in a JSON file; `what` names it in errors, `most` are the bytes that it may have."""
    return parse_json(read_bytes(path, what, most), str(path), what)


@contextmanager
def many_objects() -> Iterator[None]:
    """Without the cyclic garbage collector, which looks through a million new records again and again.

    Nor once afterwards: they are old at once, and looked at when it looks through everything. What a program
    has frozen stays so.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # into the oldest generation
            gc.enable()
