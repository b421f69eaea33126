import json
from dataclasses import replace

import pytest
from PIL import Image

from tests.data.samples import write_picture
from vg_utils.data import load_examples
from vg_utils.data.examples import DataError, Report
from vg_utils.data.jsonl import load_jsonl, write_jsonl


def line(image="photos/a.png", text="The  Mug", box=(1, 2, 30, 40), **more) -> dict:
    return {"image": image, "expressions": [{"text": text, "box_xyxy": list(box), **more}]}


def write_lines(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate("ab"):
        write_picture(tmp_path / "photos" / f"{name}.png", (64, 48), seed)
    return tmp_path


def test_lines_become_examples(folder):
    first = line(category="cup")
    first["expressions"] += [
        {"text": "the same mug", "box_xyxy": [1, 2, 30, 40], "category": "cup"},
        {"text": "une tasse bleuâtre", "box_xyxy": [5, 5, 64.5, 20]},
    ]
    write_lines(folder / "train.jsonl", first, "", line("photos/b.png"))
    a, b = load_jsonl(folder, "train")
    assert a.image == folder / "photos" / "a.png"
    assert a.size_wh == (64, 48)
    assert [e.text for e in a.expressions] == ["the mug", "the same mug", "une tasse bleuâtre"]
    assert [e.category for e in a.expressions] == ["cup", "cup", "unknown"]
    assert [e.ref_id for e in a.expressions] == [0, 0, 1], "one box, one object"
    assert a.expressions[2].box_xyxy == (5.0, 5.0, 64.0, 20.0)
    assert a.object_boxes_xyxy == ((1.0, 2.0, 30.0, 40.0), (5.0, 5.0, 64.0, 20.0))
    assert (b.image_id, b.expressions[0].ref_id, b.expressions[0].sent_id) == (1, 2, 3)


def test_phrases_that_fit_nothing(folder):
    write_lines(folder / "train.jsonl", line() | {"absent": ["The  blue mug", "a cat"]}, line("photos/b.png"))
    a, b = load_jsonl(folder, "train")
    assert [phrase.text for phrase in a.absent] == ["the blue mug", "a cat"]
    assert b.absent == ()
    ids = [phrase.sent_id for example in (a, b) for phrase in (*example.expressions, *example.absent)]
    assert ids == [0, 1, 2, 3]
    write_jsonl(folder / "val.jsonl", [a, b])
    assert [example.absent for example in load_jsonl(folder, "val")] == [a.absent, ()]


@pytest.mark.parametrize("absent", ["a cat", [""], [3], None])
def test_bad_phrases_that_fit_nothing(folder, absent):
    write_lines(folder / "train.jsonl", line() | {"absent": absent})
    with pytest.raises(DataError, match="line 1: expected a list of phrases under 'absent'"):
        load_jsonl(folder, "train")


def test_a_single_file_may_name_splits(folder):
    file = write_lines(
        folder / "own.jsonl",
        line() | {"split": "train"},
        line("photos/b.png", "b") | {"split": "val"},
        line(text="c"),
    )
    assert [e.expressions[0].text for e in load_jsonl(file, "train")] == ["the mug", "c"]
    assert [e.expressions[0].text for e in load_jsonl(file, "val")] == ["b", "c"]
    write_lines(file, line() | {"split": "train"})
    with pytest.raises(DataError, match="split 'val', found lines of train"):
        load_jsonl(file, "val")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "expected a JSON object"),
        ("[1]", "expected a dict, got list"),
        ({"image": "photos/a.png"}, "expected the keys expressions"),
        ({"image": 3, "expressions": []}, "expected a path"),
        ({"image": "photos/a.png", "expressions": []}, "at least one expression"),
        (line("photos/none.png"), "expected the image .*none.png"),
        (line("own.jsonl"), "expected the image"),
        (line(text="  "), "expression 1: expected words"),
        (line(text=7), "expression 1: expected words"),
        (line(box=(1, 2, 3)), "box of four finite numbers"),
        (line(box=("1", 2, 3, 4)), "four numbers"),
        (line(box=(1, 2, 300, 40)), "inside the 64x48 image"),
        (line(box=(30, 2, 3, 40)), "x2 > x1"),
        (line(box=(64.2, 2, 64.9, 40)), "x2 > x1"),
        ({"image": "photos/a.png", "expressions": [{"text": "x"}]}, "expected the keys box_xyxy"),
    ],
)
def test_errors_name_file_and_line(folder, bad, message):
    file = write_lines(folder / "own.jsonl", line(), bad)
    with pytest.raises(DataError, match=rf"own\.jsonl, line 2.*{message}"):
        load_jsonl(file, "train")
    report = Report()
    assert len(load_jsonl(file, "train", strict=False, report=report)) == 1
    assert report.counts == {"bad line": 1}


def test_missing_and_empty_files(folder):
    with pytest.raises(DataError, match=r"own\.jsonl: expected a text file"):
        load_jsonl(folder / "own.jsonl", "train")
    write_lines(folder / "train.jsonl")
    with pytest.raises(DataError, match="found no usable line"):
        load_jsonl(folder, "train")
    with pytest.raises(DataError, match=r"expected val\.jsonl, found train\.jsonl"):
        load_jsonl(folder, "val")


def test_line_separators_inside_a_sentence(folder):
    file = folder / "own.jsonl"
    record = json.dumps(line(text="a\u2028mug"), ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + record.encode() + b"\r\n")
    assert load_jsonl(file, "train")[0].expressions[0].text == "a mug"


def test_write_is_read_back(folder):
    write_lines(folder / "train.jsonl", line(category="cup"), line("photos/b.png", "b"))
    examples = load_jsonl(folder, "train")
    write_jsonl(folder / "deeper" / "copy.jsonl", examples)
    copy = load_jsonl(folder / "deeper" / "copy.jsonl", "train")
    assert [replace(x, image="") for x in copy] == [replace(x, image="") for x in examples]
    assert [x.image.resolve() for x in copy] == [x.image for x in examples]
    with pytest.raises(DataError, match="image 0: expected the path"):
        write_jsonl(folder / "x.jsonl", [replace(examples[0], image=Image.new("RGB", (64, 48)))])


def test_load_examples_takes_file_and_folder(folder):
    file = write_lines(folder / "train.jsonl", line())
    assert load_examples(folder, "train") == load_examples(file, "train") == load_jsonl(file, "train")
