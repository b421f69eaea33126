"""What other tools write, as JSON lines: the same boxes and phrases whichever format they came in."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.data.samples import small_set, write_picture, write_set
from vg_utils.cli import main
from vg_utils.data import DataError, load_examples
from vg_utils.data.convert import FORMATS, convert, convert_dataset, convert_frame, writing

WIDTH, HEIGHT = 64, 48


class Thing(NamedTuple):
    """A box of an image as a test means it: corners in pixels."""

    image: str
    box: tuple[float, float, float, float]
    category: str
    phrase: str


THINGS = [
    Thing("a.png", (2, 3, 30, 40), "traffic_light", "the lamp on the left"),
    Thing("a.png", (40, 5, 60, 20), "cat", "the upper cat"),
    Thing("a.png", (40, 25, 60, 45), "cat", "the lower cat"),
    Thing("b.png", (8, 8, 24, 40), "cat", "it"),
    Thing("c.png", (1, 2, 33, 44), "dog", "a dog"),
    Thing("c.png", (1, 2, 20, 20), "cat", "a dog"),  # said of two boxes, so it means neither
]
CLASSES = ["traffic_light", "cat", "dog"]
BY_PHRASE = {(t.image, t.phrase, t.box) for t in THINGS if t.image != "c.png"}
BY_CLASS = {
    ("a.png", "traffic light", THINGS[0].box),
    ("b.png", "cat", THINGS[3].box),
    ("c.png", "dog", THINGS[4].box),
    ("c.png", "cat", THINGS[5].box),
}


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder with the images of `THINGS`."""
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, name in enumerate(sorted({thing.image for thing in THINGS})):
        write_picture(folder / name, (WIDTH, HEIGHT), seed)
    return folder


def of_image(name: str) -> list[Thing]:
    return [thing for thing in THINGS if thing.image == name]


def names() -> list[str]:
    return sorted({thing.image for thing in THINGS})


# Writers of each format, by hand: with the phrases, or with the classes alone. Each returns the source.


def write_coco(folder: Path, phrases: bool) -> Path:
    ids = {name: i for i, name in enumerate(names())}
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for n, i in ids.items()],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    }
    for i, (image, (x1, y1, x2, y2), category, phrase) in enumerate(THINGS):
        annotation = {"id": i, "image_id": ids[image], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotation |= {"category_id": CLASSES.index(category)} | ({"caption": phrase} if phrases else {})
        content["annotations"].append(annotation)
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def write_yolo(folder: Path, phrases: bool) -> Path:
    (folder / "data.yaml").write_text("names: [traffic_light, cat, dog]\n")
    for name in names():
        lines = []
        for _, (x1, y1, x2, y2), category, _ in of_image(name):
            shares = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
            lines.append(" ".join(map(str, (CLASSES.index(category), *shares))))
        (folder / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    return folder


def write_labelme(folder: Path, phrases: bool) -> Path:
    for name in names():
        shapes = []
        for _, (x1, y1, x2, y2), category, phrase in of_image(name):
            shape = {"label": category, "shape_type": "polygon", "points": [[x1, y2], [x2, y1], [x1, y1]]}
            shapes.append(shape | ({"description": phrase} if phrases else {}))
        record = {"imagePath": name, "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": shapes}
        (folder / name).with_suffix(".json").write_text(json.dumps(record))
    return folder


def write_cvat(folder: Path, phrases: bool) -> Path:
    elements = []
    for name in names():
        elements.append(f'<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}">')
        for _, (x1, y1, x2, y2), category, phrase in of_image(name):
            said = f'<attribute name="Caption">{phrase}</attribute>' if phrases else ""
            corners = f'xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"'
            elements.append(f'<box label="{category}" {corners}>{said}</box>')
        elements.append("</image>")
    (folder / "annotations.xml").write_text(f"<annotations>{''.join(elements)}</annotations>")
    return folder / "annotations.xml"


def write_odvg(folder: Path, phrases: bool) -> Path:
    lines = []
    for name in names():
        regions = [{"bbox": t.box, "phrase": t.phrase} for t in of_image(name)]
        instances = [{"bbox": t.box, "label": 0, "category": t.category} for t in of_image(name)]
        said = {"grounding": {"caption": "", "regions": regions}}
        found = said if phrases else {"detection": {"instances": instances}}
        lines.append(json.dumps({"filename": name, "height": HEIGHT, "width": WIDTH, **found}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "all.jsonl"


def frame_of(phrases: bool) -> pd.DataFrame:
    said = [thing.phrase if phrases else None for thing in THINGS]
    corners = pd.DataFrame([thing.box for thing in THINGS], columns=["x1", "y1", "x2", "y2"])
    images, classes = ([getattr(thing, name) for thing in THINGS] for name in ("image", "category"))
    return corners.assign(image=images, text=said, category=classes)


def write_csv(folder: Path, phrases: bool) -> Path:
    frame_of(phrases).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def write_hf(folder: Path, phrases: bool) -> Path:
    saved = folder / "saved"
    datasets.Dataset.from_pandas(frame_of(phrases)).save_to_disk(saved)
    return saved


WRITERS: dict[str, Callable[[Path, bool], Path]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "csv": write_csv,
    "odvg": write_odvg,
    "hf": write_hf,
}


CASES = [(kind, phrases) for kind in FORMATS for phrases in (True, False) if not (kind == "yolo" and phrases)]


def read_back(root: Path) -> dict[str, set[tuple]]:
    """Image, phrase and box of every expression of each split, as the project's own reader gives them."""
    found = {}
    for split in ("train", "val", "test"):
        if (root / f"{split}.jsonl").is_file():
            examples = load_examples(root, split)
            found[split] = {(e.image.name, x.text, x.box_xyxy) for e in examples for x in e.expressions}
    return found


def everything(root: Path) -> set[tuple]:
    return set().union(*read_back(root).values())


@pytest.mark.parametrize(("kind", "phrases"), CASES)
def test_every_format_gives_the_same_phrases_of_the_same_boxes(kind, phrases, source, tmp_path):
    given, root = WRITERS[kind](source, phrases), tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    summary = convert(given, kind, root, source)
    expected = BY_PHRASE if phrases else BY_CLASS
    assert everything(root) == expected
    assert summary.from_classes != phrases
    assert summary.phrases.total() == len(expected)
    assert summary.report.counts == {"phrase of several boxes": 2}
    assert "2  phrase of several boxes (first: " in str(summary)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    assert {path.suffix for path in root.rglob("*")} == {".jsonl"}, "images stay where they are"


def test_every_format_given_as_data_is_told_how_to_convert_it(source, tmp_path):
    for kind, write in WRITERS.items():
        folder = tmp_path / kind
        folder.mkdir()
        for image in source.iterdir():
            (folder / image.name).write_bytes(image.read_bytes())
        given = write(folder, kind != "yolo")
        places = {given, *([folder] if kind != "hf" else [])}
        for place in places:
            with pytest.raises(DataError, match=f"prepare jsonl --from {kind} {place} --root"):
                load_examples(place, "train", strict=False)


def test_a_fault_of_data_that_need_no_conversion_stays_what_it_is(source, tmp_path):
    convert_frame(frame_of(True), tmp_path / "own", source)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1")
    for data in (tmp_path / "own", tmp_path / "damaged", write_set(tmp_path / "refer", *small_set())):
        with pytest.raises(DataError) as error:
            load_examples(data, "no such split")
        assert "prepare jsonl" not in str(error.value)


# splits


def test_roboflows_export_keeps_its_splits(source, tmp_path):
    for split, name in (("train", "a.png"), ("valid", "b.png"), ("test", "c.png")):
        folder = tmp_path / "robo" / split
        folder.mkdir(parents=True)
        (source / name).rename(folder / name)
        write_coco(folder, True).rename(folder / "_annotations.coco.json")
        content = json.loads((folder / "_annotations.coco.json").read_text())
        content["annotations"] = [a for a in content["annotations"] if THINGS[a["id"]].image == name]
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    convert(tmp_path / "robo", "coco", tmp_path / "out")
    found = read_back(tmp_path / "out")
    assert {split: {image for image, *_ in triples} for split, triples in found.items()} == {
        "train": {"a.png"},
        "val": {"b.png"},
    }, "the one phrase of c.png means two boxes"


def test_the_folder_that_the_source_lies_in_is_no_split(source, tmp_path):
    given = write_coco(source.rename(tmp_path / "test"), True)
    for number, place in enumerate((given, given.parent)):
        convert(place, "coco", tmp_path / str(number))
        assert "train" in read_back(tmp_path / str(number))


def test_ultralytics_layout_keeps_its_splits(tmp_path):
    root = tmp_path / "yolo"
    for seed, split in enumerate(("train", "val")):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        write_picture(root / "images" / split / f"{split}.jpg", (100, 50), seed)
        (root / "labels" / split / f"{split}.txt").write_text("7 0.5 0.5 0.2 0.4 0.9\n7 0 0 0 0.1 0.1 0.1\n")
    (root / "data.yaml").write_text("names: {7: lamp, 8: bed}\ntrain: ../images/train\nval: images/val\n")
    (root / "labels" / "train" / "train.txt").write_text("8 0 0 0 0.2 0.1 0.2 0.1 0\n7 0.5 0.5 0.2 0.4 0.9\n")
    summary = convert(root / "data.yaml", "yolo", tmp_path / "out")
    assert read_back(tmp_path / "out") == {
        "train": {("train.jpg", "lamp", (40, 15, 60, 35)), ("train.jpg", "bed", (0, 0, 10, 10))}
    }
    assert summary.report.counts == {"phrase of several boxes": 2}  # both lamps of val


def test_without_splits_the_names_of_images_decide(tmp_path):
    table, box = [], {"x1": 1, "y1": 2, "x2": 30, "y2": 40}
    write_picture(tmp_path / "0.png", (WIDTH, HEIGHT))
    for number in range(60):
        name = f"{number}.png"
        (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
        table.append({"image": name, "text": f"thing {number}", **box})
    convert_frame(pd.DataFrame(table), tmp_path / "one", tmp_path)
    divided = read_back(tmp_path / "one")
    assert set(divided) == {"train", "val", "test"}
    assert len(divided["train"]) > len(divided["val"]) > 0
    convert_frame(pd.DataFrame(table[::-1][:40]), tmp_path / "two", tmp_path)
    again = read_back(tmp_path / "two")
    assert all(again[split] <= divided[split] for split in divided), "fewer images move none"
    for row in table:  # val is split off train, and what is test stays
        row["split"] = "test" if row["image"] < "3" else "train"
    convert_frame(pd.DataFrame(table), tmp_path / "three", tmp_path)
    own = read_back(tmp_path / "three")
    assert own["test"] == {(r["image"], r["text"], (1, 2, 30, 40)) for r in table if r["split"] == "test"}
    assert own["val"]


# tables and data sets


@pytest.mark.parametrize("box", ["[2, 3, 30.5, 40]", "2 3 30.5 40", [2, 3, 30.5, 40]])
def test_boxes_of_tables(box, source, tmp_path):
    frame = pd.DataFrame([{"image": "a.png", "text": "it", "bbox": box}])
    frame.to_parquet(source / "table.parquet")
    convert(source / "table.parquet", "csv", tmp_path / "out")
    assert everything(tmp_path / "out") == {("a.png", "it", (2, 3, 30.5, 40))}


def test_a_data_set_with_its_images_inside(source, tmp_path):
    rows = {
        "image": [str(source / name) for name in names()],
        "sentences": [[t.phrase for t in of_image(name)] for name in names()],
        "bbox": [[list(t.box) for t in of_image(name)] for name in names()],
    }
    stored = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    stored = stored.map(lambda row: row, features=stored.features)  # pixels now lie in the data set
    stored.save_to_disk(tmp_path / "saved")
    pixels = [Image.open(source / name).convert("RGB").tobytes() for name in ("a.png", "b.png")]
    for image in source.iterdir():
        image.unlink()
    summary = convert(tmp_path / "saved", "hf", tmp_path / "out")
    found = everything(tmp_path / "out")
    assert {(text, box) for _, text, box in found} == {(text, box) for _, text, box in BY_PHRASE}
    written = sorted((tmp_path / "out" / "images").iterdir())
    assert sorted(Image.open(path).convert("RGB").tobytes() for path in written) == sorted(pixels)
    assert summary.images.total() == 2


def test_parquet_of_the_hub_is_a_data_set_and_a_table(source, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    frame = frame_of(True).assign(image=[{"bytes": (source / t.image).read_bytes()} for t in THINGS])
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    frame[:3].to_parquet(folder / "train-00000-of-00001.parquet")
    frame[3:].to_parquet(folder / "validation-00000-of-00001.parquet")
    convert(tmp_path / "hub", "hf", tmp_path / "one")
    convert(tmp_path / "hub", "csv", tmp_path / "two")
    found = read_back(tmp_path / "one")
    assert found == read_back(tmp_path / "two")
    said = {split: {(text, box) for _, text, box in triples} for split, triples in found.items()}
    assert said == {
        split: {(text, box) for image, text, box in BY_PHRASE if image == name}
        for split, name in (("train", "a.png"), ("val", "b.png"))
    }


def test_an_image_is_in_one_split(source, tmp_path):
    frame = frame_of(True).assign(split=["val", "train", "train", "train", "test", "test"])
    summary = convert_frame(frame, tmp_path / "out", source)
    assert {
        split: {image for image, *_ in found} for split, found in read_back(tmp_path / "out").items()
    } == {
        "val": {"a.png"},
        "train": {"b.png"},
    }
    assert "images of several splits: 1" in str(summary)


def test_detections_of_the_hub_are_x_y_width_height_with_numbers_of_classes(source, tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Value("string"),
            "objects": {
                "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                "category": datasets.Sequence(datasets.ClassLabel(names=CLASSES)),
            },
        }
    )
    objects = [
        {
            "bbox": [[t.box[0], t.box[1], t.box[2] - t.box[0], t.box[3] - t.box[1]] for t in of_image(name)],
            "category": [t.category for t in of_image(name)],
        }
        for name in names()
    ]
    parts = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"image": names(), "objects": objects}, features).select([i])
            for i, split in enumerate(("train", "validation", "test"))
        }
    )
    convert_dataset(parts, tmp_path / "out", source)
    frame = pd.DataFrame({"image": names()})
    arrays = [
        {"bbox": [np.float32(b) for b in o["bbox"]], "category": np.array(o["category"])} for o in objects
    ]
    convert_frame(frame.assign(objects=arrays), tmp_path / "arrays", source)
    assert everything(tmp_path / "arrays") == BY_CLASS
    found = read_back(tmp_path / "out")
    assert set().union(*found.values()) == BY_CLASS
    assert {image for image, *_ in found["val"]} == {"b.png"}


# what does not come over


def test_bad_boxes_and_images_are_counted_and_make_no_class_alone(source, tmp_path):
    content = json.loads(write_coco(source, False).read_text())
    boxes = content["annotations"]
    boxes[3]["bbox"] = [1, 2, "3", 4]
    boxes[4]["bbox"] = [50, 2, 30, 4]
    boxes[5]["iscrowd"] = 1
    boxes += [
        {"id": 10, "image_id": 0, "category_id": 0, "bbox": None},  # a second lamp, wherever it is
        {"id": 11, "image_id": 77, "category_id": 0, "bbox": [1, 2, 3, 4]},
        {"id": 12, "category_id": 0},
        {"id": 13, "image_id": 0, "category_id": 2, "bbox": [0.1, 0.2, 0.3, 0.4]},
        {"id": 14, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]},
    ]
    (source / "boxes.json").write_text(json.dumps(content))
    summary = convert(source / "boxes.json", "coco", tmp_path / "out")
    assert everything(tmp_path / "out") == {("b.png", "dog", (1, 2, 4, 6))}
    assert summary.report.counts == {
        "phrase of several boxes": 4,
        "not a box": 2,
        "box outside the image": 1,
        "image not readable": 1,
        "missing keys": 1,
        "box in shares": 1,
    }


def test_an_image_of_another_size_than_is_said_has_wrong_boxes(source, tmp_path):
    write_picture(source / "a.png", (WIDTH * 2, HEIGHT * 2))
    summary = convert(write_cvat(source, True), "cvat", tmp_path / "out")
    assert {image for image, *_ in everything(tmp_path / "out")} == {"b.png"}
    assert summary.report.counts["image of another size"] == 1


def test_nothing_is_written_where_something_is_wrong(source, tmp_path, capsys):
    root, given = tmp_path / "out", write_csv(source, True)
    wrong = {
        ("coco", given): "JSON",
        ("csv", source / "none.csv"): "no such file",
        ("yolo", source): "classes.txt",
        ("cvat", source): ".xml",
        ("cvat", given): "XML",
        ("hf", source / "a.png"): "a.png",
        ("cco", given): "did you mean 'coco'",
    }
    for (kind, place), message in wrong.items():
        assert main(["prepare", "jsonl", "--from", kind, str(place), "--root", str(root)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not root.exists()
    elsewhere = write_coco(source, True).rename(tmp_path / "boxes.json")
    assert main(["prepare", "jsonl", "--from", "coco", str(elsewhere), "--root", str(root)]) == 2
    assert "--images" in capsys.readouterr().err
    (source / "other.csv").write_text("picture,words\na.png,it\n")
    assert main(["prepare", "jsonl", "--from", "csv", str(source / "other.csv"), "--root", str(root)]) == 2
    assert "image, text, and x1" in capsys.readouterr().err


def test_the_command_says_what_came_over_and_refuses_to_mix(source, tmp_path, capsys):
    root, given = tmp_path / "out", write_csv(source, True)
    command = ["prepare", "jsonl", "--from", "csv", str(given), "--root", str(root)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{root}: 2 images" in printed
    assert "with 4 phrases" in printed
    assert "2  phrase of several boxes" in printed
    assert "python -m vg_utils train" in printed
    assert main(command) == 2
    assert "without other data, found train.jsonl" in capsys.readouterr().err


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_stopped_conversion_goes_on_and_no_other_does(source, tmp_path, monkeypatch, capsys, written):
    rows = [
        f"{name}.png,the thing,1,1,9,9,{s}\n" for name, s in zip("abc", ("train", "val", "test"), strict=True)
    ]
    given, other = source / "own.csv", write_csv(source, True)
    given.write_text("".join(["image,text,x1,y1,x2,y2,split\n", *rows]))
    convert(given, "csv", tmp_path / "whole")
    root, write, files = tmp_path / "out", writing.write_jsonl, []

    def stopped(path, examples):
        if len(files) == written:
            raise KeyboardInterrupt
        files.append(path)
        write(path, examples)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_jsonl", stopped)
        with pytest.raises(KeyboardInterrupt):
            convert(given, "csv", root)
    begun = tree(root)
    for command in (["jsonl", "--from", "csv", str(other)], ["scenes"]):
        assert main(["prepare", *command, "--root", str(root)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert tree(root) == begun
    convert(given, "csv", root)
    assert tree(root) == tree(tmp_path / "whole")


def test_labelmes_groups_and_circles(source, tmp_path):
    shapes = [
        {"label": "cat", "group_id": 1, "points": [[1, 1], [10, 10]], "shape_type": "rectangle"},
        {"label": "cat", "group_id": 1, "points": [[20, 5], [30, 15]], "shape_type": "rectangle"},
        {"label": "ball", "points": [[40, 20], [43, 24]], "shape_type": "circle"},
        {"label": "spot", "points": [[40, 20]], "shape_type": "point"},
    ]
    (source / "a.json").write_text(json.dumps({"imagePath": "..\\source\\a.png", "shapes": shapes}))
    summary = convert(source, "labelme", tmp_path / "out")
    assert everything(tmp_path / "out") == {
        ("a.png", "cat", (1, 1, 30, 15)),
        ("a.png", "ball", (35, 15, 45, 25)),
    }
    assert summary.report.total == 1


def test_cvats_turned_boxes_are_upright(source, tmp_path):
    box = '<box label="cat" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/>'
    image = f'<image name="a.png" width="{WIDTH}" height="{HEIGHT}" subset="Train">{box}</image>'
    (source / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    convert(source / "annotations.xml", "cvat", tmp_path / "out")
    ((_, _, box),) = everything(tmp_path / "out")
    assert box == pytest.approx((25, 15, 35, 35))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "hf"])
def test_a_damaged_file_is_one_line_or_is_read_without_what_is_bad(kind, source, tmp_path):
    draw = random.Random(kind)
    given = WRITERS[kind](source, kind != "yolo")
    files = [path for path in sorted(source.iterdir()) if path.suffix != ".png"]
    refused = {}
    for number in range(40):
        file = draw.choice(files)
        whole = file.read_bytes()
        at, junk = (
            draw.randrange(len(whole)),
            draw.choice([b"", b"nan", b"-", b'"', b"]", b"null", b"9" * 400]),
        )
        file.write_bytes(whole[:at] + junk + whole[at + draw.randrange(8) :])
        root = tmp_path / str(number)
        try:
            convert(given, kind, root, source)
            read_back(root)
        except DataError as error:
            refused[root] = str(error)
        file.write_bytes(whole)
    assert len(refused) < 40
    assert not any("\n" in message for message in refused.values())
    assert not any(root.exists() for root in refused)
