"""Pickles of plain data (numbers, texts, lists, dicts), read so that a hostile one can do nothing.

Code cannot run: whatever names a global is refused. Nor can a small file cost gigabytes or end the
interpreter: before anything is built, one pass over the opcodes refuses what plain data do not need (tuples,
for one, whose hash as a key recurses without bound), lengths and places of the memo beyond the file, and
swarms of empty containers.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from functools import cache
from pathlib import Path
from typing import Any

from vg_utils.data.examples import DataError
from vg_utils.data.records import read_bytes

BYTES_A_CONTAINER = 4  # an empty list or dict is one byte of a file and up to 64 of memory

_OPCODES = {op.name: op for op in pickletools.opcodes}
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_SIMPLE = """
    BINGET LONG_BINGET BINPUT MEMOIZE BININT BININT1 BININT2 APPENDS SETITEMS MARK EMPTY_LIST EMPTY_DICT NONE
    NEWTRUE NEWFALSE BINFLOAT PROTO FRAME POP POP_MARK DUP GET INT LONG FLOAT STRING UNICODE LIST APPEND DICT
    SETITEM
"""
_TEXTS = {"BINUNICODE": 4, "SHORT_BINUNICODE": 1, "SHORT_BINSTRING": 1}  # bytes of their length
_LENGTH_BYTES = _TEXTS | {"BINSTRING": 4, "LONG1": 1, "LONG4": 4, "BINUNICODE8": 8}
# There the unpickler ends as well: it is done, or refuses a name
_ENDS = {"STOP", "GLOBAL", "STACK_GLOBAL", "INST", "PERSID", "BINPERSID"}


def read_plain(path: Path, what: str) -> Any:
    """What a pickle of plain data holds; `what` names its content in error messages.

    Raises:
        DataError: the file is missing, no regular file or damaged, or more than plain data.
    """
    content = read_bytes(path, what)
    _scan(content, f"{path}: expected {what}")
    try:
        return _PlainUnpickler(content, path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: expected {what}, got: {error!r}") from error


def _scan(content: bytes, where: str) -> None:
    """Raise a DataError unless the opcodes are those of plain data and fit into the file."""
    at, end = 0, len(content)
    run = _run(1 << end.bit_length())  # the next power of two: a few patterns serve all files
    most = content.count(pickle.EMPTY_LIST) + content.count(pickle.EMPTY_DICT)  # or bytes of texts
    if most > 1000 + end // BYTES_A_CONTAINER:
        raise DataError(f"{where}, refused {most} lists and dicts in {end} bytes")
    while (at := run.match(content, at).end()) < end:
        name = _NAMES.get(content[at], f"byte {content[at]:#x}")
        if name in _ENDS:
            return
        if name not in _LENGTH_BYTES:
            raise DataError(f"{where}, refused {name} at byte {at}: plain data in {end} bytes have none such")
        start = at + 1 + _LENGTH_BYTES[name]
        at = start + int.from_bytes(content[at + 1 : start], "little")
    raise DataError(f"{where}, found a file that was cut short")


@cache
def _run(size: int) -> re.Pattern[bytes]:
    """A pattern for as many simple opcodes as there are, each with its argument, in a file of `size` bytes.

    Among them are texts of up to 63 bytes, which is most, and places of the memo that such a file can fill.
    """
    used = min(4, max(1, (size.bit_length() + 7) // 8))  # bytes of such a place; the last is the highest
    highest = re.escape(bytes([min(255, size >> 8 * (used - 1))]))
    place = b".{%d}[\0-%b]" % (used - 1, highest) + b"\0" * (4 - used)
    # Tried in this order: the usual ones first
    kinds = [_short_text(_OPCODES[name], count) for name, count in _TEXTS.items()]
    kinds += [b"r" + place, b"p[0-9]{1,%d}\n" % len(str(size))]
    kinds += [_simple(_OPCODES[name]) for name in _SIMPLE.split()]
    return re.compile(b"(?:%b)*+" % b"|".join(kinds), re.DOTALL)


def _short_text(op: pickletools.OpcodeInfo, length_bytes: int) -> bytes:
    """A pattern for an opcode, a length of so many bytes, and a text of that length."""
    texts = [re.escape(n.to_bytes(length_bytes, "little")) + b".{%d}" % n for n in range(64)]
    return re.escape(op.code.encode("latin-1")) + b"(?:%b)" % b"|".join(texts)


def _simple(op: pickletools.OpcodeInfo) -> bytes:
    """A pattern for an opcode and its argument, which is a line or of a fixed number of bytes."""
    code = re.escape(op.code.encode("latin-1"))
    if op.arg is None:
        return code
    return code + (rb"[^\n]*\n" if op.arg.n == pickletools.UP_TO_NEWLINE else b".{%d}" % op.arg.n)


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists and dicts only: whatever else a pickle asks for is refused."""

    def __init__(self, content: bytes, path: Path):
        # Buffered, for its `peek`: without one the unpickler asks the file for each opcode, twice as slow
        file = io.BufferedReader(io.BytesIO(content))
        super().__init__(file, encoding="utf-8")  # the original files were written by Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"{self._path}: expected plain data, refused the global {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"{self._path}: expected plain data, refused the persistent id {pid!r}")
