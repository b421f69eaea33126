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


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("a cat", "a list under 'absent'"),
        ([""], "phrases under 'absent'"),
        ([3], "phrases"),
        (None, "a list"),
    ],
)
def test_bad_phrases_that_fit_nothing(folder, absent, message):
    write_lines(folder / "train.jsonl", line() | {"absent": absent}, line())
    with pytest.raises(DataError, match=f"line 1: expected .*{message}"):
        load_jsonl(folder, "train")
    report = Report()
    assert load_jsonl(folder, "train", strict=False, report=report)
    assert report.total == 1


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
    ("bad", "message", "reason"),
    [
        ("{not json", "expected a JSON object", "not JSON"),
        ("[1]", "expected a dict, got list", "not a record"),
        ({"image": "photos/a.png"}, "expected the keys expressions", "missing keys"),
        ({"image": 3, "expressions": []}, "expected text under 'image'", "image is not text"),
        ({"image": "photos/a.png", "expressions": []}, "at least one expression", "no expression"),
        (line("photos/none.png"), "expected the image .*none.png", "image not readable"),
        (line("own.jsonl"), "expected the image", "image not readable"),
        (line(text="  "), "expression 1: expected words", "text is not words"),
        (line(text=7), "expression 1: expected words", "text is not words"),
        (line(box=(1, 2, 3)), "four finite numbers", "box_xyxy is not four finite numbers"),
        (line(box=("1", 2, 3, 4)), "four finite numbers", "box_xyxy is not four finite numbers"),
        (line(box=(1, 2, 300, 40)), "inside the 64x48 image", "box outside the image"),
        (line(box=(30, 2, 3, 40)), "x2 > x1", "box without area"),
        (line(box=(64.2, 2, 64.9, 40)), "inside the 64x48 image", "box outside the image"),
        (line(box=(0.1, 0.2, 0.4, 1)), "look like shares", "box in shares"),
        (line(category=["cup"]), "text under 'category'", "category is not text"),
        ({"image": "photos/a.png", "expressions": [{"text": "x"}]}, "the keys box_xyxy", "missing keys"),
    ],
)
def test_errors_name_file_and_line(folder, bad, message, reason):
    file = write_lines(folder / "own.jsonl", line(), bad)
    with pytest.raises(DataError, match=rf"own\.jsonl, line 2.*{message}"):
        load_jsonl(file, "train")
    report = Report()
    assert len(load_jsonl(file, "train", strict=False, report=report)) == 1
    assert report.counts == {reason: 1}


def test_one_bad_box_takes_only_its_expression(folder):
    own = line()
    own["expressions"] += line(text="too far right", box=(40, 1, 67, 30))["expressions"]
    own["expressions"] += line(text="the cup", box=(5, 5, 20, 20))["expressions"]
    file = write_lines(folder / "train.jsonl", own)
    report = Report()
    (example,) = load_jsonl(file, "train", strict=False, report=report)
    assert [e.text for e in example.expressions] == ["the mug", "the cup"]
    assert report.counts == {"box outside the image": 1}


def test_a_file_that_names_no_split_is_divided_by_image(folder):
    names = [f"photos/{number}.png" for number in range(60)]
    for name in names:
        write_picture(folder / name, (64, 48))
    file = write_lines(folder / "own.jsonl", *map(line, names), *map(line, names[:10]))
    parts, report = {}, Report()
    for split in ("train", "val", "test"):
        parts[split] = {e.image.name for e in load_jsonl(file, split, report=report)}
    assert all(parts.values())
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 60, (
        "no image is in two of them"
    )
    assert "no line names its split" in report.notes[0]
    assert len(load_jsonl(file, "all")) == 70
    write_lines(file, *map(line, names[:40]))
    assert {e.image.name for e in load_jsonl(file, "val")} <= parts["val"], "fewer images move none"


def test_a_file_with_the_name_of_a_split_is_that_split(folder):
    file = write_lines(folder / "val.jsonl", line(), line("photos/b.png"))
    assert len(load_jsonl(file, "val")) == 2
    with pytest.raises(DataError, match="split 'train', found lines of val"):
        load_jsonl(file, "train")


def test_images_of_several_splits_are_said(folder):
    write_lines(folder / "train.jsonl", line(), line("photos/b.png"))
    write_lines(folder / "val.jsonl", line())
    report = Report()
    load_jsonl(folder, "val", report=report)
    assert report.notes == ["images that val shares with train: 1"]
    both = write_lines(folder / "own.jsonl", line() | {"split": "train"}, line() | {"split": "val"}, line())
    load_jsonl(both, "val", report=(report := Report()))
    assert report.notes == [
        "images that val shares with every split: 1",
        "images that val shares with train: 1",
    ]


def test_paths_written_on_windows(folder):
    file = write_lines(folder / "val.jsonl", line("photos\\a.png"))
    assert load_jsonl(file, "val")[0].image == folder / "photos" / "a.png"


def test_missing_and_empty_files(folder):
    with pytest.raises(
        DataError, match=r"own\.jsonl: expected a text file of JSON lines, found no such file"
    ):
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
    file = write_lines(folder / "val.jsonl", line())
    assert load_examples(folder, "val") == load_examples(file, "val") == load_jsonl(file, "val")
