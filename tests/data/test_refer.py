import json
import pickle
import random

import pytest

from tests.data.samples import (
    ANNOTATIONS,
    HOSTILE,
    PHOTOS,
    annotation,
    needs_annotations,
    needs_photos,
    ref,
    sentence,
    small_set,
    write_set,
)
from vg_utils.data.coco_boxes import corners, corners_of_many
from vg_utils.data.examples import AbsentPhrase, BadRecord, DataError, Report
from vg_utils.data.images import load_image
from vg_utils.data.refer import load_refer
from vg_utils.data.refer_files import count_splits, leakage, read_refs, write_refer


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path, *small_set())


def test_joins_references_annotations_and_pictures(root):
    (example,) = load_refer(root, "train")
    assert example.image_id == 7
    assert example.image == root / "images" / "COCO_train2014_000000000007.jpg"
    assert example.size_wh == (64, 48)
    man, again, car = example.expressions
    assert (man.text, man.sent_id, man.ref_id, man.category) == ("the man on the left", 0, 0, "person")
    assert man.box_xyxy == (1.5, 2.0, 11.5, 22.0)
    assert again.text == man.text, "sentences that repeat within a reference are kept"
    assert (man.distractors, car.distractors) == (1, 0)
    assert (man.family, car.family) == ("", "name")
    assert example.object_categories == ("person", "person", "car")
    assert example.object_boxes_xyxy[1] == (30.0, 5.0, 50.0, 35.0)


def phrase(image_id: int, sent_id: int, text: str, split: str = "train") -> dict:
    return {"image_id": image_id, "split": split, **sentence(sent_id, text)}


def write_absent(root, *phrases) -> None:
    (root / "annotations" / "absent(umd).p").write_bytes(pickle.dumps(list(phrases), protocol=2))


def test_phrases_that_fit_nothing(root):
    assert load_refer(root, "train")[0].absent == ()
    write_absent(root, phrase(7, 90, "A  blue car"), phrase(8, 91, "a dog", "test"))
    assert load_refer(root, "train")[0].absent == (AbsentPhrase("a blue car", 90),)
    assert load_refer(root, "test")[0].absent == (AbsentPhrase("a dog", 91),)
    assert load_refer(root, "val")[0].absent == ()
    assert count_splits(root)["train"]["sentences"] == 3, "they are no references"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (phrase(77, 90, "a dog"), "absent phrase of an unknown image"),
        (phrase(8, 90, "a dog"), "absent phrase of an unknown image"),  # of another split
        (phrase(7, 90, " "), "empty sentence"),
        (phrase(7, 1, "a dog"), "duplicate sent_id"),
    ],
)
def test_bad_phrases_that_fit_nothing(root, bad, reason):
    write_absent(root, bad, phrase(7, 92, "a cat"))
    with pytest.raises(BadRecord, match=reason):
        load_refer(root, "train")
    report = Report()
    (example,) = load_refer(root, "train", strict=False, report=report)
    assert report.counts == {reason: 1}
    assert [phrase.text for phrase in example.absent] == ["a cat"]


def test_damaged_files_of_phrases_that_fit_nothing(root):
    for content, message in ((Report, "refused the global"), ({}, "got dict"), ([{"sent": "a"}], "sent_id")):
        (root / "annotations" / "absent(umd).p").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=message):
            load_refer(root, "train")


def test_non_ascii_text_and_overhanging_box(root):
    (example,) = load_refer(root, "test")
    assert example.expressions[1].text == "a cár"
    assert example.expressions[0].box_xyxy == (0.0, 0.0, 64.0, 48.0)


def test_examples_come_in_the_order_of_image_ids(tmp_path):
    instances, refs = small_set()
    refs = [dict(r, split="train") for r in refs]
    root = write_set(tmp_path, instances, refs)
    assert [e.image_id for e in load_refer(root, "train")] == [7, 8, 9]


@pytest.mark.parametrize("folder", ["images", "train2014", "."])
def test_folders_of_the_pictures(tmp_path, folder):
    root = write_set(tmp_path, *small_set(), images=folder)
    assert load_image(load_refer(root, "val")[0].image).size == (64, 48)


def test_files_directly_in_the_folder(tmp_path):
    write_set(tmp_path, *small_set(), images="annotations")
    assert len(load_refer(tmp_path / "annotations", "train")) == 1


def test_the_record_names_a_picture_without_cocos_name(tmp_path):
    instances, refs = small_set()
    for record in instances["images"]:
        record["file_name"] = f"scene_{record['id']}.png"
    root = write_set(tmp_path, instances, refs)
    assert load_refer(root, "val")[0].image.name == "scene_9.png"


@pytest.mark.parametrize("folder", ["train2017", "images/mscoco/images/train2014"])
def test_images_as_other_projects_keep_them(tmp_path, folder):
    root = write_set(tmp_path, *small_set())
    (root / folder).mkdir(parents=True)
    for path in (root / "images").glob("*.jpg"):  # COCO's release of 2017 names them by their number
        path.rename(root / folder / path.name.removeprefix("COCO_train2014_"))
    assert load_image(load_refer(root, "val")[0].image).size == (64, 48)


def test_images_of_several_splits_are_said(tmp_path):
    instances, refs = small_set()
    root = write_set(
        tmp_path, instances, [*refs, ref(9, 71, 7, "val", [sentence(9, "the man on the right")])]
    )
    report = Report()
    load_refer(root, "val", report=report)
    assert report.notes == ["images that val shares with train: 1"]
    assert report.total == 0
    load_refer(root, "test", report=(report := Report()))
    assert not report.worth_saying


def test_grefcoco(tmp_path):
    instances, refs = small_set()
    refs = [dict(r, ann_id=[r["ann_id"]], split="train") for r in refs]
    refs.append(ref(10, [70, 71], 7, "train", [sentence(10, "both men"), sentence(11, "the men")]))
    refs.append(ref(11, [-1], 7, "train", [sentence(12, "The dog")]))
    refs.append(ref(12, [-1], 77, "train", [sentence(13, "a cat")]))
    root = write_set(tmp_path, instances, [])
    (root / "annotations" / "refs(umd).p").unlink()
    (root / "annotations" / "grefs(unc).json").write_text(json.dumps(refs))
    report = Report()
    first, *_ = load_refer(root, "train", report=report)
    assert [e.text for e in first.expressions] == ["the man on the left", "the man on the left", "a car"]
    assert first.absent == (AbsentPhrase("the dog", 12),)
    assert report.counts == {"several targets": 2, "no target, in an image without other phrases": 1}
    assert count_splits(root, "unc")["train"]["refs"] == 7


def test_partitions(root):
    instances, refs = small_set()
    write_set(root, instances, [dict(refs[0], split="train")], "google")
    assert load_refer(root, "val")[0].image_id == 9, "umd is the default"
    assert load_refer(root, "train", "google")[0].image_id == 9
    with pytest.raises(DataError, match=r"refs\(unc\)\.p, found partitions: google, umd"):
        load_refer(root, "train", "unc")
    (root / "annotations" / "refs(umd).p").rename(root / "annotations" / "refs(unc).p")
    with pytest.raises(DataError, match="google, unc"):
        load_refer(root, "train")
    (root / "annotations" / "refs(google).p").unlink()
    assert load_refer(root, "val")[0].image_id == 9, "the only partition there is taken"


def test_unknown_split_names_those_there(root):
    with pytest.raises(DataError, match="'testA', found: train, val, test"):
        load_refer(root, "testA")


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"expected instances\.json in .*annotations or "):
        load_refer(tmp_path, "train")


def test_splits_and_leakage(root):
    instances, refs = small_set()
    assert count_splits(root)["train"] == {"refs": 2, "images": 1, "sentences": 3}
    assert list(count_splits(root)) == ["train", "val", "test"]
    assert leakage(root).leaking == []
    write_set(root, instances, [*refs, ref(9, 71, 7, "val", [sentence(9, "the man on the right")])], "google")
    shared = leakage(root)
    assert shared["google"] == {("train", "val"): 1, ("train", "test"): 0, ("val", "test"): 0}
    assert shared.leaking == ["google"]
    assert "google: train and val share 1 image\n" in str(shared)
    assert "umd: train and val share no images" in str(shared)


def test_distractors_are_open_where_only_referred_objects_are_listed(tmp_path):
    instances, refs = small_set()
    referred = {r["ann_id"] for r in refs}
    instances["annotations"] = [a for a in instances["annotations"] if a["id"] in referred]
    root = write_set(tmp_path / "deduced", instances, refs)
    assert load_refer(root, "train")[0].expressions[0].distractors is None
    instances["info"]["lists_all_objects"] = True
    root = write_set(tmp_path / "stated", instances, refs)
    assert load_refer(root, "train")[0].expressions[0].distractors == 0


def test_unknown_category(tmp_path):
    instances, refs = small_set()
    for record in instances["annotations"]:
        record["category_id"] = 0
    root = write_set(tmp_path, instances, refs)
    expression = load_refer(root, "train")[0].expressions[0]
    assert (expression.category, expression.distractors) == ("unknown", None)


# ---- bad records: strict stops and names them, not strict counts them ----


def _without_annotation(instances, refs):
    instances["annotations"] = [a for a in instances["annotations"] if a["id"] != 70]


def _without_record(instances, refs):
    instances["images"] = [i for i in instances["images"] if i["id"] != 7]


def _empty_sentence(instances, refs):
    refs[1]["sentences"][0]["sent"] = " \n"


def _outside(instances, refs):
    instances["annotations"][0]["bbox"] = [50.0, 2.0, 20.0, 20.0]


def _no_area(instances, refs):
    instances["annotations"][0]["bbox"] = [5.0, 2.0, 0.0, 20.0]


def _sliver(instances, refs):
    instances["annotations"][0]["bbox"] = [64.2, 2.0, 0.5, 20.0]


def _not_a_box(instances, refs):
    instances["annotations"][0]["bbox"] = [5.0, None, 1.0, 2.0]


def _nan(instances, refs):
    instances["annotations"][0]["bbox"] = [float("nan"), 2.0, 10.0, 20.0]


def _duplicate_ref(instances, refs):
    refs.append(refs[1])


def _duplicate_sentence(instances, refs):
    refs[2]["sentences"][0]["sent_id"] = 0


def _duplicate_annotation(instances, refs):
    instances["annotations"].append(instances["annotations"][0])


def _another_image(instances, refs):
    refs[1]["ann_id"] = 80


@pytest.mark.parametrize(
    ("damage", "reason", "names", "expressions_left"),
    [
        (_without_annotation, "reference without an annotation", "ref 0: expected annotation 70", 1),
        (_without_record, "image without a record", "image 7", 0),
        (_empty_sentence, "empty sentence", "ref 0, sentence 0", 2),
        (_outside, "box outside the image", "annotation 70", 1),
        (_no_area, "box without area", "annotation 70", 1),
        (_sliver, "box outside the image", "annotation 70", 1),
        (_not_a_box, "not a box", "annotation 70", 1),
        (_nan, "not a box", "annotation 70", 1),
        (_duplicate_ref, "duplicate ref_id", "ref_id 0", 3),
        (_duplicate_sentence, "duplicate sent_id", "sent_id 0", 2),
        (_duplicate_annotation, "duplicate id", "id 70", 3),
        (_another_image, "annotation of another image", "annotation 80 belongs to image 8", 1),
    ],
)
def test_bad_records(tmp_path, damage, reason, names, expressions_left):
    instances, refs = small_set()
    damage(instances, refs)
    root = tmp_path
    (root / "annotations").mkdir()
    (root / "annotations" / "instances.json").write_text(json.dumps(instances))
    (root / "annotations" / "refs(umd).p").write_bytes(pickle.dumps(refs))
    with pytest.raises(DataError, match=names) as error:
        load_refer(root, "train", require_images=False)
    assert ".p" in str(error.value) or "instances.json" in str(error.value)
    report = Report()
    left = load_refer(root, "train", strict=False, require_images=False, report=report)
    assert sum(len(e.expressions) for e in left) == expressions_left
    assert report.counts[reason] == report.total == 1
    assert reason in str(report)


def test_missing_picture(root):
    (root / "images" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(DataError, match="image 7: expected COCO_train2014_000000000007"):
        load_refer(root, "train")
    report = Report()
    assert load_refer(root, "train", strict=False, report=report) == []
    assert report.counts == {"image not found": 1}
    assert len(load_refer(root, "train", require_images=False)) == 1


def test_bad_box_of_an_object_nobody_refers_to_is_left_out(tmp_path):
    instances, refs = small_set()
    instances["annotations"].append(annotation(73, 7, [0.0, 0.0, 0.0, 0.0]))
    report = Report()
    (example,) = load_refer(write_set(tmp_path, instances, refs), "train", report=report)
    assert len(example.object_boxes_xyxy) == 3
    assert report.counts == {"other object, box without area": 1}


def test_corners():
    assert corners([1, 2, 3, 4], (10, 10), "here") == (1.0, 2.0, 4.0, 6.0)
    with pytest.raises(BadRecord, match=r"^here: .*inside the 10x10 image"):
        corners([1, 2, 30, 4], (10, 10), "here")


def test_corners_of_many_are_those_of_each():
    """But for boxes with a fault, or that are cut, which are left to `corners`."""
    draw, sides = random.Random(0), (-1, -0.5, 0, 0.25, 1, 2, 5.5, 9.5, 10, 10.25, 12, 30, float("nan"), 1e10)
    boxes = [[draw.choice(sides) for _ in range(4)] for _ in range(5000)]
    sizes = [(draw.choice((1, 10, 11)), draw.choice((1, 10, 11))) for _ in boxes]
    found = corners_of_many([{"bbox": box} for box in boxes], sizes)
    for box, size, many in zip(boxes, sizes, found, strict=True):
        try:
            one = corners(box, size, "here")
        except BadRecord:
            one = None
        x, y, width, height = box
        is_cut = not (x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1])
        assert many == (None if is_cut or max(x + width, y + height) <= 1 else one)
    assert sum(box is not None for box in found) > 40
    for hostile in HOSTILE:
        assert corners_of_many([{"bbox": [1, 2, 3, 4]}, {"bbox": hostile}], [(10, 10)] * 2)[1] is None


# ---- the pickle ----


class _Bomb:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_a_pickle_that_names_a_global_is_refused(root, capsys):
    path = root / "annotations" / "refs(umd).p"
    path.write_bytes(pickle.dumps([_Bomb()]))
    with pytest.raises(
        DataError, match=r"refs\(umd\)\.p: expected plain data, refused the global builtins\.print"
    ):
        load_refer(root, "train")
    assert capsys.readouterr().out == ""


def test_a_pickle_with_a_persistent_id_is_refused(tmp_path):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(b"\x80\x02X\x03\x00\x00\x00abcQ.")
    with pytest.raises(DataError, match="refused the persistent id 'abc'"):
        read_refs(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a pickle", pickle.dumps(small_set()[1])[:-20], pickle.dumps({"a": 1}), pickle.dumps([1])],
)
def test_damaged_refs(tmp_path, content):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"refs\(umd\)\.p"):
        read_refs(path)


@pytest.mark.parametrize("key", ["ann_id", "sentences"])
def test_a_ref_of_other_types_is_refused(tmp_path, key):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(pickle.dumps([dict(small_set()[1][0], **{key: "x"})]))
    with pytest.raises(DataError, match=rf"entry 0, ref_id 3: expected a .* under '{key}', got 'x'"):
        read_refs(path)


def test_python_2_pickles_are_read(tmp_path):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(pickle.dumps(small_set()[1], protocol=0))
    assert read_refs(path) == small_set()[1]


@pytest.mark.parametrize("content", ["", "[]", '{"images": []}', '{"images": [], "annotations": 1}'])
def test_damaged_instances(root, content):
    (root / "annotations" / "instances.json").write_text(content)
    with pytest.raises(DataError, match=r"instances\.json"):
        load_refer(root, "train")


def test_write_refer_is_read_back(root, tmp_path):
    written = write_refer(tmp_path / "copy", "umd", *small_set())
    assert sorted(path.name for path in written.iterdir()) == ["instances.json", "refs(umd).p"]
    (copy,) = load_refer(tmp_path / "copy", "train", require_images=False)
    assert copy.expressions == load_refer(root, "train")[0].expressions


# ---- the real files ----


@needs_photos
@pytest.mark.parametrize(
    ("split", "images", "refs", "sentences"), [("train", 43, 43, 43), ("val", 4, 9, 17), ("test", 11, 13, 24)]
)
def test_real_photographs(split, images, refs, sentences):
    examples = load_refer(PHOTOS, split)
    assert len(examples) == images
    assert len({e.ref_id for x in examples for e in x.expressions}) == refs
    assert sum(len(x.expressions) for x in examples) == sentences
    assert all(load_image(x.image).size == x.size_wh for x in examples[:5])
    assert count_splits(PHOTOS)[split] == {"refs": refs, "images": images, "sentences": sentences}


@needs_annotations
@pytest.mark.parametrize(
    ("split", "images", "refs", "sentences"), [("val", 1300, 2573, 4896), ("test", 2600, 5023, 9602)]
)
def test_real_umd_annotations(split, images, refs, sentences):
    report = Report()
    examples = load_refer(ANNOTATIONS, split, require_images=False, report=report)
    assert len(examples) == images
    assert len({e.ref_id for x in examples for e in x.expressions}) == refs
    assert sum(len(x.expressions) for x in examples) == sentences
    assert report.total == 0
    assert all(e.distractors is None for x in examples for e in x.expressions)
    assert leakage(ANNOTATIONS) == {"umd": {("val", "test"): 0}}
