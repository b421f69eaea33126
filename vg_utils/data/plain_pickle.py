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
from pathlib import Path
from typing import Any

from vg_utils.data.examples import DataError
from vg_utils.data.records import read_bytes

BYTES_A_CONTAINER = 4  # an empty list or dict is one byte of a file and up to 64 of memory

_OPCODES = {op.name: op for op in pickletools.opcodes}
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_SIMPLE = """
    BINGET LONG_BINGET BINPUT MEMOIZE SHORT_BINUNICODE BININT BININT1 BININT2 APPENDS SETITEMS MARK EMPTY_LIST
    EMPTY_DICT NONE NEWTRUE NEWFALSE BINFLOAT PROTO FRAME POP POP_MARK DUP GET INT LONG LONG1 FLOAT STRING
    SHORT_BINSTRING UNICODE LIST APPEND DICT SETITEM
"""
_LENGTH_BYTES = {"BINSTRING": 4, "LONG4": 4, "BINUNICODE": 4, "BINUNICODE8": 8}
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
        return _PlainUnpickler(io.BytesIO(content), path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: expected {what}, got: {error!r}") from error


def _scan(content: bytes, where: str) -> None:
    """Raise a DataError unless the opcodes are those of plain data and fit into the file."""
    at, end, run = 0, len(content), _run(len(content))
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


def _run(size: int) -> re.Pattern[bytes]:
    """A pattern for as many simple opcodes as there are, each with its argument, in a file of `size` bytes.

    Among them are texts of up to 63 bytes, which is most, and places of the memo that such a file can fill.
    """
    texts = b"|".join(re.escape(bytes([n])) + b"\0\0\0.{%d}" % n for n in range(64))
    used = min(4, max(1, (size.bit_length() + 7) // 8))  # bytes of such a place; the last is the highest
    highest = re.escape(bytes([min(255, size >> 8 * (used - 1))]))
    place = b".{%d}[\0-%b]" % (used - 1, highest) + b"\0" * (4 - used)
    # Tried in this order: the usual ones first
    kinds = [b"X(?:%b)" % texts, b"r" + place, b"p[0-9]{1,%d}\n" % len(str(size))]
    kinds += [_simple(_OPCODES[name]) for name in _SIMPLE.split()]
    return re.compile(b"(?:%b)*+" % b"|".join(kinds), re.DOTALL)


def _simple(op: pickletools.OpcodeInfo) -> bytes:
    """A pattern for one opcode and its argument: so many bytes, a line, or a length below 256 and so many."""
    code = re.escape(op.code.encode("latin-1"))
    if op.arg is None:
        return code
    if op.arg.n == pickletools.UP_TO_NEWLINE:
        return code + rb"[^\n]*\n"
    if op.arg.n == pickletools.TAKEN_FROM_ARGUMENT1:
        return code + b"(?:%b)" % b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(256))
    return code + b".{%d}" % op.arg.n


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists and dicts only: whatever else a pickle asks for is refused."""

    def __init__(self, file: io.BytesIO, path: Path):
        super().__init__(file, encoding="utf-8")  # the original files were written by Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"{self._path}: expected plain data, refused the global {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"{self._path}: expected plain data, refused the persistent id {pid!r}")
