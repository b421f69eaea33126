"""Ref-L4's review: its records are found among the sentences that were read, or counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.samples import ANNOTATIONS, needs_annotations, ref, sentence, small_set, write_set
from vg_utils.data import DataError, GroundingExample, load_examples
from vg_utils.data.refer_files import picture_name, read_instances, read_refs
from vg_utils.data.reviewed import read_reviewed


def review_of(instances: dict, refs: list[dict], split: str, wrong: set[int] = frozenset()) -> dict:
    """A review as Ref-L4 has it: an image and an annotation for each sentence; `wrong` are sent_ids."""
    boxes = {a["id"]: a["bbox"] for a in instances["annotations"]}
    images, annotations = [], []
    for r in (r for r in refs if r["split"] == split):
        for s in r["sentences"]:
            number = len(images)
            file_name = picture_name(r["image_id"])
            images.append({"id": number, "file_name": file_name, "caption": s["sent"], "height": 48})
            quality = int(s["sent_id"] not in wrong)
            annotations.append(
                {"id": number, "image_id": number, "bbox": boxes[r["ann_id"]], "caption_quality": quality}
            )
    return {"images": images, "annotations": annotations, "categories": []}


@pytest.fixture
def data(tmp_path) -> tuple[dict, list[dict], list[GroundingExample]]:
    instances, refs = small_set()
    refs.append(ref(10, 71, 7, "train", [sentence(20, "a car"), sentence(21, "the right one")]))
    return instances, refs, load_examples(write_set(tmp_path, instances, refs), "train")


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("wrong", [set(), {2}, {20}, {0, 1, 21}])
def test_flags_are_of_the_sentence_about_the_same_box(data, tmp_path, wrong):
    """Sentences 2 and 20 are the same words about two objects of an image; 0 and 1 the same about one."""
    instances, refs, examples = data
    file = write(tmp_path / "review.json", review_of(instances, refs, "train", wrong))
    found = read_reviewed(file, examples)
    assert found.flagged == wrong
    assert found.counts() == {"n_records": 5, "n_flagged": len(wrong), "n_unmatched": 0, "n_not_reviewed": 0}
    assert str(found).endswith(f"sentences flagged: {len(wrong)}")


def test_what_does_not_match_is_counted_and_said(data, tmp_path):
    instances, refs, examples = data
    review = review_of(instances, refs, "train", {2, 21})
    review["images"][-1]["caption"] = "something else"  # sentence 21
    review["annotations"][2]["bbox"] = [30.0, 5.0, 10.0, 10.0]  # of sentence 2, far from where it is
    review["annotations"][3]["bbox"] = [30.4, 5.0, 20.0, 30.0]  # of sentence 20, within a pixel
    review["images"][0]["file_name"] = picture_name(999)
    found = read_reviewed(write(tmp_path / "review.json", review), examples)
    assert not found.flagged
    assert (found.n_unmatched, found.n_not_reviewed) == (3, 2)  # sentence 1 has a record of the same words
    assert "match no sentence: 3 (first: COCO_train2014_000000000999.jpg, ' The man" in str(found)
    assert "sentences without a record: 2" in str(found)


BAD = {
    "a list": (lambda review: [], "an object with a list under 'images'"),
    "no annotations": (lambda review: {"images": []}, "an object with a list under 'annotations'"),
    "of nothing": (lambda review: {"images": [], "annotations": []}, "got 0 of others"),
    "no quality": (
        lambda review: review | {"annotations": [{"image_id": 0, "bbox": [0, 0, 1, 1], "id": 3}]},
        "annotations, entry 0, image_id 0: expected the keys caption_quality, got only image_id, bbox, id",
    ),
    "no caption": (lambda review: review | {"images": [{"id": 0, "file_name": "a_7.jpg"}]}, "caption"),
    "another's name": (
        lambda review: review | {"images": [review["images"][0] | {"file_name": "desk.jpg"}]},
        "expected COCO's name of an image under 'file_name', got 'desk.jpg'",
    ),
    "images left out": (lambda review: review | {"images": review["images"][:2]}, "a record with id 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_files_are_refused_in_a_line(data, tmp_path, case):
    instances, refs, examples = data
    change, message = BAD[case]
    file = write(tmp_path / "review.json", change(review_of(instances, refs, "train")))
    with pytest.raises(DataError) as error:
        read_reviewed(file, examples)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_a_review_of_another_split_or_of_wrong_sentences_alone_is_refused(data, tmp_path):
    instances, refs, examples = data
    other = write(tmp_path / "other.json", review_of(instances, refs, "val"))
    with pytest.raises(DataError, match=r"same data set and split.*got 1 of others.*'the one'"):
        read_reviewed(other, examples)
    everything = review_of(instances, refs, "train", {0, 1, 2, 20, 21})
    with pytest.raises(DataError, match="expected a sentence that is not flagged, got 5 that are"):
        read_reviewed(write(tmp_path / "all.json", everything), examples)


@needs_annotations
def test_every_sentence_of_the_real_val_is_found(tmp_path):
    folder = ANNOTATIONS if (ANNOTATIONS / "instances.json").is_file() else ANNOTATIONS / "annotations"
    refs = read_refs(folder / "refs(umd).p")
    own = [s["sent_id"] for r in refs if r["split"] == "val" for s in r["sentences"]]
    wrong = set(own[::20])
    review = review_of(read_instances(folder / "instances.json"), refs, "val", wrong)
    examples = load_examples(ANNOTATIONS, "val", require_images=False)
    found = read_reviewed(write(tmp_path / "review.json", review), examples)
    assert wrong <= found.flagged  # and the same words about the same box, which are as wrong
    assert len(found.flagged - wrong) < 20
    assert (found.n_records, found.n_unmatched, found.n_not_reviewed) == (len(own), 0, 0)
