"""Whatever stands in an annotation file: an error that names it, or it is left out and counted."""

import copy
import gc
import json
import math
import os
import pickle
from random import Random

import pytest

from tests.data.samples import HOSTILE, sentence, small_set, write_picture, write_set
from vg_utils.data import DataError, Report, load_examples
from vg_utils.data.examples import MESSAGE, BadRecord
from vg_utils.data.records import (
    BOX,
    DEEPEST,
    LIST,
    TEXT,
    WHOLE,
    checked,
    many_objects,
    parse_json,
    read_json,
    shown,
)

# Where a value is put, and what it has to be to be read there
INSTANCES = {
    ("images", 1, "id"): WHOLE,
    ("images", 1, "width"): WHOLE,
    ("images", 1, "height"): WHOLE,
    ("images", 1, "file_name"): TEXT,
    ("annotations", 0, "id"): WHOLE,
    ("annotations", 0, "image_id"): WHOLE,
    ("annotations", 0, "category_id"): WHOLE,
    ("annotations", 0, "bbox"): BOX,
    ("annotations", 1): None,
    ("categories", 0, "id"): WHOLE,
    ("categories", 0, "name"): TEXT,
    ("images",): LIST,
    ("annotations",): LIST,
    ("categories",): LIST,
}
REFS = {(1, key): WHOLE for key in ("ref_id", "ann_id", "image_id")} | {
    (1, "split"): TEXT,
    (1, "sentences"): LIST,
    (1, "sentences", 0): None,
    (1, "sentences", 0, "sent"): TEXT,
    (1, "sentences", 0, "sent_id"): WHOLE,
    (2, "sentences", 0, "family"): TEXT,
    (1,): None,
}
ABSENT = {
    (0, "image_id"): WHOLE,
    (0, "sent_id"): WHOLE,
    (0, "split"): TEXT,
    (0, "sent"): TEXT,
    (0, "family"): TEXT,
}
LINES = {
    (0, "image"): TEXT,
    (0, "expressions"): LIST,
    (0, "split"): TEXT,
    (0, "absent"): LIST,
    (0, "absent", 0): TEXT,
    (0, "expressions", 0): None,
    (0, "expressions", 0, "text"): TEXT,
    (0, "expressions", 0, "box_xyxy"): BOX,
    (0, "expressions", 0, "category"): TEXT,
    (0,): None,
}


def put(tree, path, value):
    """A copy of nested lists and dicts with a value in one place."""
    tree = inner = copy.deepcopy(tree)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def read(folder, strict, report) -> tuple[str | None, list]:
    """The message of the error, or None, and the examples."""
    try:
        return None, load_examples(folder, "train", strict=strict, report=report, require_images=False)
    except DataError as found:
        message = str(found)
    assert "\n" not in message
    assert len(message) <= MESSAGE
    return message, []


def check_both_ways(folder, kind, value, may_be_fine=False):
    """Strict and lenient: one line, or plain records; a wrong value is never taken without a word."""
    report = Report()
    error, _ = read(folder, True, Report())
    if error is not None:
        assert str(folder) in error or "instances.json" in error
    none_usable, examples = read(folder, False, report)
    if none_usable is not None:
        assert error
        return
    if not may_be_fine and not (kind and kind.fits(value)):
        assert error, "accepted without a word"
        assert report.total
    for example in examples:
        assert type(example.image_id) is int
        assert all(type(side) is int for side in example.size_wh)
        assert all(type(side) is float for box in example.object_boxes_xyxy for side in box)
        for phrase in (*example.expressions, *example.absent):
            assert type(phrase.text) is type(phrase.family) is str
            assert type(phrase.sent_id) is int
        assert all(type(e.category) is str and type(e.ref_id) is int for e in example.expressions)
        assert all(type(category) is str for category in example.object_categories)


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path, *small_set())


@pytest.mark.parametrize("path", INSTANCES, ids=str)
def test_instances(root, path):
    for value in HOSTILE:
        changed = put(small_set()[0], path, value)
        (root / "annotations" / "instances.json").write_text(json.dumps(changed))
        check_both_ways(root, INSTANCES[path], value)


@pytest.mark.parametrize("path", REFS, ids=str)
def test_references(root, path):
    for value in [*HOSTILE, 10**5000]:
        changed = put(small_set()[1], path, value)
        (root / "annotations" / "refs(umd).p").write_bytes(pickle.dumps(changed, protocol=2))
        check_both_ways(root, REFS[path], value)


@pytest.mark.parametrize("path", ABSENT, ids=str)
def test_absent_phrases(root, path):
    phrase = {"image_id": 7, "split": "train", **sentence(90, "a dog")}
    for value in HOSTILE:
        content = pickle.dumps(put([phrase], path, value), protocol=2)
        (root / "annotations" / "absent(umd).p").write_bytes(content)
        check_both_ways(root, ABSENT[path], value)


@pytest.mark.parametrize("path", LINES, ids=str)
def test_json_lines(tmp_path, path):
    write_picture(tmp_path / "a.png", (64, 48))
    good = {"image": "a.png", "expressions": [{"text": "the mug", "box_xyxy": [1, 2, 30, 40]}]}
    optional = path[-1] in ("split", "category")  # where null is nothing said
    for value in HOSTILE:
        changed = put([good | {"absent": ["a cat"]}], path, value)
        text = "\n".join(map(json.dumps, [*changed, good]))
        (tmp_path / "train.jsonl").write_text(text)
        check_both_ways(tmp_path, LINES[path], value, may_be_fine=optional and value is None)


def test_json_that_is_nested_too_deep(root, tmp_path):
    deep = "[" * 200_000 + "]" * 200_000
    (root / "annotations" / "instances.json").write_text(deep)
    with pytest.raises(DataError, match=r"instances\.json: expected COCO's annotations as JSON, got lists"):
        load_examples(root, "train")
    (tmp_path / "train.jsonl").write_text(deep)
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: expected a JSON object"):
        load_examples(tmp_path / "train.jsonl", "train")


def drawn_json(random: Random, depth: int) -> object:
    """Nested `depth` deep, with brackets and quotes in its texts."""
    if depth == 0:
        return random.choice(['[[["{', '\\\\"[', "]}", 7, None])
    beside = [drawn_json(random, random.randrange(min(depth, 3))) for _ in range(random.randrange(3))]
    inner = [*beside, drawn_json(random, depth - 1)]
    random.shuffle(inner)
    return inner if random.random() < 0.5 else {f'[{i}"': value for i, value in enumerate(inner)}


@pytest.mark.parametrize("seed", range(20))
def test_json_is_read_down_to_the_depth_that_is_stated_and_no_further(seed):
    random = Random(seed)
    for depth in (1, 5, DEEPEST - 1, DEEPEST):
        value = drawn_json(random, depth)
        assert parse_json(json.dumps(value).encode(), "here", "JSON") == value
    with pytest.raises(DataError, match=f"here: expected JSON, got .* more than {DEEPEST} deep"):
        parse_json(json.dumps(drawn_json(random, DEEPEST + 1)).encode(), "here", "JSON")


def test_a_file_larger_than_is_stated_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # which takes no room on most disks
    with pytest.raises(DataError, match=r"a\.json: expected boxes in at most 2,147,483,648 bytes"):
        read_json(tmp_path / "a.json", "boxes")
    (tmp_path / "b.json").write_text("[1, 2]")
    assert read_json(tmp_path / "b.json", "boxes", 6) == [1, 2]
    with pytest.raises(DataError, match="at most 5 bytes, got 6"):
        read_json(tmp_path / "b.json", "boxes", 5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_what_is_no_regular_file_is_refused(root, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="found something that is no regular file"):
        read_json(pipe, "annotations")
    with pytest.raises(DataError, match="expected a folder or a file"):
        load_examples(pipe, "train")
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "pipe", "expressions": []}))
    with pytest.raises(DataError, match="found no regular file"):
        load_examples(tmp_path / "train.jsonl", "train")
    (tmp_path / "train.jsonl").unlink()
    os.replace(pipe, root / "annotations" / "refs(umd).p")
    with pytest.raises(DataError, match="found something that is no regular file"):
        load_examples(root, "train")


def test_checked_counts_and_names_what_it_leaves_out():
    records = [{"id": 1, "name": "a"}, {"id": [2], "name": "b"}, {"id": 3}, 4]
    report = Report()
    kept = checked(records, {"id": WHOLE, "name": TEXT}, "cats.json", strict=False, report=report)
    assert kept == records[:1]
    assert report.counts == {"id is not a whole number": 1, "missing keys": 1, "not a record": 1}
    first = report.first["id is not a whole number"]
    assert first.startswith("cats.json, entry 1, id [2]: expected a whole number under 'id', got [2]")
    with pytest.raises(DataError, match=r"entry 1, id 3: expected the keys name, got only id"):
        checked([records[0], records[2]], {"id": WHOLE, "name": TEXT}, "cats.json")


def test_a_bad_record_comes_back_from_another_process():
    error = pickle.loads(pickle.dumps(BadRecord("no box", "refs.p, ref 7")))
    assert (str(error), error.reason) == ("refs.p, ref 7 (no box)", "no box")


@pytest.mark.parametrize("value", [*HOSTILE, 10**5000, "a\nb"], ids=lambda value: type(value).__name__)
def test_any_value_is_shown_in_a_line(value):
    assert len(shown(value)) <= 100
    assert "\n" not in shown(value)


@pytest.mark.parametrize("kind", [WHOLE, TEXT, BOX], ids=lambda kind: kind.name)
def test_values_that_fit_at_once_fit_each(kind):
    """What is told of many values at once is never more than each of them says of itself."""
    fine = {WHOLE: [3, 2**63 - 1], TEXT: ["a", ""], BOX: [[1, 2.5, 3, 4], [0, 0, 1e3, -1]]}[kind]
    assert kind.fit_at_once(fine)
    assert not kind.fit_at_once([])
    odd = [*HOSTILE, True, 2**63, -(2**63) - 1, 1.0, "\ud800", (1, 2, 3, 4), [1, 2, 3], [1, 2, 3, "4"]]
    odd += [[1, 2, 3, number] for number in (math.nan, math.inf, 10**400, True, 1e300)]
    for value in odd:
        assert not kind.fit_at_once([*fine, value]) or kind.fits(value), value


def test_json_is_read_as_python_reads_it():
    texts = [
        '{"a": [1, -2.5e3, null, true, "\\u00e4\\n"], "a": 2}',
        "[NaN, -Infinity]",
        '"\\ud800"',
        str(2**64 - 1),
    ]
    for text in texts:
        read = parse_json(text.encode(), "file", "JSON")
        assert json.dumps(read) == json.dumps(json.loads(text))
    assert not WHOLE.fits(parse_json(str(10**400).encode(), "file", "JSON"))


@pytest.mark.parametrize("frozen", [False, True])
def test_many_objects_are_old_at_once_and_what_is_frozen_stays_so(frozen):
    gc.freeze() if frozen else gc.unfreeze()
    count = gc.get_freeze_count()
    try:
        with many_objects():
            assert not gc.isenabled()
            made = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() == count
        if not frozen:
            old = {id(one) for one in gc.get_objects(generation=2)}
            assert all(id(one) in old for one in made)
    finally:
        gc.freeze()  # as the suite has it


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with many_objects():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
