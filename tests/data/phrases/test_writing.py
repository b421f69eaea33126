"""The data set on disk: layout, determinism, what is refused."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from tests.data.phrases.drawn import write_set
from tests.data.samples import HOSTILE, SHARED
from vg_utils.data import load_examples
from vg_utils.data.examples import DataError
from vg_utils.data.phrases import make_phrases
from vg_utils.data.phrases.making import make
from vg_utils.data.phrases.reading import (
    ANNOTATION,
    CAPTION,
    CATEGORY,
    IMAGE,
    OF_IMAGE,
    annotated_classes,
)
from vg_utils.data.refer_files import read_absent, read_refs

PHOTOGRAPHS = SHARED / "photographs"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("source") / "set", pictures=30)


@pytest.fixture
def own(tmp_path):
    return write_set(tmp_path / "own", pictures=3)


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "phrases"
    make_phrases(**source, root=folder, seed=3, processes=1, progress=False)
    return folder


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_reader_reads_it(root):
    examples = {split: load_examples(root, split) for split in ("train", "val", "test")}
    assert sum(map(len, examples.values())) == 30
    every = [e for split in examples.values() for e in split]
    assert {x.family for e in every for x in e.expressions} >= {"place", "color", "combination"}
    assert any(e.absent for e in every)
    assert all(x.distractors is not None for e in every for x in e.expressions)
    colors = [(x.text, x.box_xyxy) for e in every for x in e.expressions if x.family == "color"]
    for text, box in colors:
        example = next(e for e in every for x in e.expressions if (x.text, x.box_xyxy) == (text, box))
        pixel = Image.open(example.image).getpixel((int(box[0] + 40), int(box[1] + 20)))
        if " red" in text:
            assert pixel[0] > 150
            assert pixel[2] < 90


def test_splits_are_of_pictures(root):
    refs = read_refs(root / "annotations" / "refs(umd).p")
    of_picture = {(ref["image_id"], ref["split"]) for ref in refs}
    assert len(of_picture) == 30
    assert len(read_absent(root / "annotations" / "absent(umd).p")) > 10


def test_same_files_whatever_the_number_of_processes(source, root, tmp_path):
    make_phrases(**source, root=tmp_path / "two", seed=3, processes=2, progress=False)
    assert contents(tmp_path / "two") == contents(root)
    make_phrases(**source, root=tmp_path / "other", seed=4, processes=1, progress=False)
    refs = "annotations/refs(umd).p"
    assert contents(tmp_path / "other")[refs] != contents(root)[refs]


def test_made_again_in_place_and_after_a_cut(source, root):
    before = contents(root)
    (root / "annotations" / "instances.json").unlink()
    next((root / "images").iterdir()).unlink()
    make_phrases(**source, root=root, seed=3, processes=1, progress=False)
    assert contents(root) == before


def test_another_seed_or_foreign_data_is_refused(source, root, tmp_path):
    with pytest.raises(DataError, match="choose another folder"):
        make_phrases(**source, root=root, seed=5, processes=1, progress=False)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="expected a folder without data"):
        make_phrases(**source, root=tmp_path, processes=1, progress=False)
    assert not (tmp_path / "phrases.json").exists()


def spoiled(own, change) -> None:
    instances = json.loads(own["instances"].read_text())
    change(instances)
    own["instances"].write_text(json.dumps(instances))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), "a list under 'annotations'"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "four finite numbers under 'bbox'"),
        (lambda d: d["annotations"][0].update(bbox=[190, 10, 50, 20]), "a box in the 200x150 image"),
        (lambda d: d["annotations"][0].update(category_id=77), "ids of an image and a category"),
        (lambda d: d["annotations"][0].pop("id"), "expected the keys id"),
        (lambda d: d["annotations"][1].update(id=1), "each annotation id once"),
        (lambda d: d["images"][0].update(file_name="gone.jpg"), "found no such image"),
        (lambda d: d["images"][0].update(width=201), "expected 201x150 pixels, got 200x150"),
        (lambda d: d["images"][0].update(width="wide"), "a whole number of pixels under 'width'"),
        (lambda d: d["images"][1].update(id=1), "each image id once"),
        (lambda d: d["annotations"].clear(), "made no phrase"),
    ],
)
def test_bad_instances(own, tmp_path, change, message):
    spoiled(own, change)
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        make_phrases(**own, root=tmp_path / "out", processes=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_bad_files(own, tmp_path):
    out = tmp_path / "out"
    for changed in ("instances", "captions", "images"):
        with pytest.raises(DataError, match=r"no such|No such|expected"):
            make_phrases(**{**own, changed: tmp_path / "nothing"}, root=out, processes=1, progress=False)
    own["captions"].write_text("{}")
    with pytest.raises(DataError, match="list under 'annotations'"):
        make_phrases(**own, root=out, processes=1, progress=False)
    next(own["images"].iterdir()).write_bytes(b"no jpeg")
    with pytest.raises(DataError, match="an image that decodes"):
        make_phrases(own["instances"], own["images"], out, processes=1, progress=False)
    assert not out.exists()


KINDS = {
    ("instances", "images"): IMAGE | OF_IMAGE,
    ("instances", "annotations"): ANNOTATION,
    ("instances", "categories"): CATEGORY,
    ("captions", "annotations"): CAPTION,
}
PLACES = [(*place, key) for place, fields in KINDS.items() for key in (None, *fields)]


@pytest.mark.parametrize(("file", "part", "key"), PLACES)
def test_whatever_stands_in_a_record_is_refused_in_a_line(own, tmp_path, file, part, key):
    """Unless it is what is meant there."""
    whole, out = json.loads(own[file].read_text()), tmp_path / "out"
    for value in HOSTILE:
        changed = copy.deepcopy(whole)
        changed[part][0] = value if key is None else changed[part][0] | {key: value}
        own[file].write_text(json.dumps(changed))
        try:
            make_phrases(**own, root=out, processes=1, progress=False)
        except DataError as error:
            said = str(error)
        else:
            assert key is not None
            assert KINDS[file, part][key].fits(value), "accepted without a word"
            shutil.rmtree(out)
            continue
        assert str(own[file]) in said
        assert not out.exists()


@pytest.mark.parametrize("file", ["instances", "captions"])
def test_nested_without_end(own, tmp_path, file):
    own[file].write_text('{"annotations": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(DataError, match="nested more than 400 deep"):
        make_phrases(**own, root=tmp_path / "out", processes=1, progress=False)


def test_without_captions(own, tmp_path):
    summary = make_phrases(own["instances"], own["images"], tmp_path / "out", processes=1, progress=False)
    assert summary.phrases.total() > 10
    assert "by family" in str(summary)
    shutil.rmtree(own["images"])  # images have come along
    assert load_examples(tmp_path / "out", "train")


def test_what_a_source_annotates():
    names = {1: "car", 2: "cat", 3: "dog"}
    images = [{"id": i, "file_name": f"a_{i:04d}.jpg"} for i in range(25)]
    images += [{"id": i, "file_name": f"b_{i:04d}.jpg"} for i in range(100, 125)]
    images += [{"id": 500, "file_name": "c.jpg", "annotated_category_ids": [2]}]
    of_image = {record["id"]: [] for record in images}
    of_image[3] = [{"category_id": 1}]
    of_image[110] = [{"category_id": 3}]
    known = annotated_classes(images, of_image, names)
    assert known[0] == {"car"}
    assert known[100] == {"dog"}
    assert known[500] == {"cat"}


def test_absent_phrases_name_annotated_classes_only():
    from tests.data.phrases.drawn import random_picture

    picture = replace(random_picture(4, captions=False), known=frozenset(("cat", "bus")))
    made = make(picture, 0, {"cat": 1.0, "bus": 1.0})
    heads = {p.meaning[0][1] for p in made.absent if p.family == "absent class"}
    assert heads <= {"cat", "kitty", "bus"}


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"no photographs at {PHOTOGRAPHS}")
def test_real_photographs(tmp_path):
    instances = json.loads((PHOTOGRAPHS / "instances.json").read_text())
    kept = instances["images"][::10]
    numbers = {image["id"] for image in kept}
    objects = [item for item in instances["annotations"] if item["image_id"] in numbers]
    some = tmp_path / "instances.json"
    some.write_text(json.dumps(instances | {"images": kept, "annotations": objects}))
    files = {"instances": some, "captions": PHOTOGRAPHS / "captions.json", "images": PHOTOGRAPHS / "images"}
    summary = make_phrases(**files, root=tmp_path / "made", processes=1, progress=False)
    assert summary.images.total() > 0.95 * len(kept)
    assert summary.phrases.total() > 10 * len(kept)
