"""Pickles of plain data are read; one that is more, or would cost more, is an error before it is built."""

import pickle
import struct

import pytest

from tests.data.samples import small_set
from vg_utils.data import DataError
from vg_utils.data.plain_pickle import read_plain

PLAIN = [{"id": 1, "name": "a" * 300, "box": [1.5, -2.0, 2**40, None, True]}, "é", -1, 2**200, [], {}]


def read(tmp_path, content: bytes):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(content)
    return read_plain(path, "references")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path, protocol):
    for data in (PLAIN, small_set()[1], [["word"] * 300, list(range(70_000)), [f"{i}" for i in range(1000)]]):
        assert read(tmp_path, pickle.dumps(data, protocol)) == data


def test_texts_of_python_2(tmp_path):
    assert read(tmp_path, b"\x80\x02]q\x00U\x03abcq\x01a.") == ["abc"]


def dictionary_of_nested_tuples() -> bytes:
    """Its key's hash takes 2^100 steps."""
    return b"\x80\x02}(K\x00" + b"2\x86" * 100 + b"K\x01s."


REFUSED = {
    "place of the memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "place of the memo as text": b"]p2147483647\n.",
    "length": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "length of eight bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "nested tuples": dictionary_of_nested_tuples(),
    "deep tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "sets": b"\x80\x04\x8f.",
    "empty dicts": b"\x80\x02(" + b"}" * 2_000_000 + b"l.",
    "extension": b"\x80\x02\x82\x01.",
    "global": b"cbuiltins\neval\n.",
    "global after a call": b"\x80\x02]cbuiltins\nprint\nX\x01\x00\x00\x00a\x85R.",
    "persistent id": b"\x80\x02X\x03\x00\x00\x00abcQ.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "text": b"hello",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"refs\(umd\)\.p: expected ") as error:
        read(tmp_path, REFUSED[name])
    assert len(str(error.value)) < 500


def test_a_cut_anywhere_is_an_error(tmp_path):
    content = pickle.dumps(small_set()[1][:2], protocol=2)
    for end in range(len(content)):
        with pytest.raises(DataError):
            read(tmp_path, content[:end])


def test_deep_lists_do_no_harm(tmp_path):
    deep = b"\x80\x02" + b"]" * 900 + b"a" * 899 + b"."
    value = read(tmp_path, deep)
    assert isinstance(value[0][0], list)
