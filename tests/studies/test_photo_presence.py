"""What is asked of presence: categories that are there, and those that nothing speaks for."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from experiments import photo_presence, report_photos
from vg_utils.data import Expression, GroundingExample
from vg_utils.evaluation.confidence import auroc

COCO = ("person", "car", "cat", "chair", "couch", "dining table", "dog", "giraffe", "truck")


def example(text: str, *categories: str, image_id: int = 7) -> GroundingExample:
    boxes = tuple((2.0 * i, 0.0, 2.0 * i + 20, 30.0) for i in range(len(categories)))
    expression = Expression(text, boxes[0], image_id, image_id, categories[0])
    return GroundingExample(Image.new("RGB", (64, 48)), image_id, (expression,), (64, 48), boxes, categories)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("the left one", {"person", "cat", "chair", "couch", "dining table", "dog", "giraffe"}),
        ("the one behind two men", {"cat", "chair", "couch", "dining table", "dog", "giraffe"}),
        ("next to the sofas", {"person", "cat", "chair", "dining table", "dog", "giraffe"}),
        ("beside an animal", {"person", "chair", "couch", "dining table"}),
    ],
)
def test_what_may_be_there_is_not_asked(text, missing):
    asked = photo_presence.questions([example(text, "car", "car")], COCO)
    assert set(asked["category"][asked["there"]]) == {"car"}  # nor the truck, which it may be
    assert set(asked["category"][~asked["there"]]) == missing
    assert len(asked) == 1 + len(missing)


def test_what_was_seen_besides_is_there_and_what_perhaps_is_not_asked():
    seen = {"7": {"there": ["couch"], "perhaps": ["giraffe"]}, "99": {"there": ["dog"], "perhaps": []}}
    asked = photo_presence.questions([example("the left one", "car")], COCO, seen)
    assert set(asked["category"][asked["there"]]) == {"car", "couch"}
    assert set(asked["category"][~asked["there"]]) == {"person", "cat", "dining table", "dog"}
    assert set(asked["image_id"]) == {7}


def test_an_image_of_two_splits_is_asked_about_once():
    asked = photo_presence.questions(
        [
            example("the dog", "dog"),
            example("it", "cat"),
        ],
        COCO,
    )
    assert set(asked["category"][asked["there"]]) == {"cat", "dog"}
    assert not asked.duplicated().any()


def page_of(found: dict) -> str:
    return report_photos.on_presence(found).replace("\n", " ")


def test_results_and_the_page(tiny_scenes, tmp_path, capsys):
    file = tmp_path / "presence.json"
    where = ("--people", str(tiny_scenes), "--checkpoint", "scenes/dense-grounder", "--out", str(file))
    assert photo_presence.main(where) == 0
    found = json.loads(file.read_text())
    assert found["all_objects_have_boxes"]
    low, high = found["presence_auroc_ci95"]
    assert 0.5 < low <= found["presence_auroc"] <= high
    assert f"**{found['presence_auroc']:.3f}**" in page_of(found)
    assert "by eye" not in page_of(found)
    assert "0 of the categories" in page_of(found | {"all_objects_have_boxes": False})
    for share, reached in ((0.94, "was **not** reached"), (0.95, "was reached")):
        assert reached in page_of(found | {"presence_auroc": share})
    file.write_text('{"7": {"there": []}}')
    for wrong in (("--people", str(tmp_path)), (*where, "--seen", str(file))):
        assert photo_presence.main(wrong) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert "image 7: expected the keys perhaps" in said


def test_what_the_model_is_surest_of_is_listed():
    presence = [0.9, 0.2, 0.8, 0.4, 0.1]
    answers = pd.DataFrame({"image_id": [1, 1, 2, 2, 2], "category": list("abcde"), "presence": presence})
    answers["there"] = [True, False, True, False, False]
    found = photo_presence.results_of(answers)
    assert found["presence_auroc"] == auroc([0.9, 0.8], [0.2, 0.4, 0.1]) == 1
    assert [line["category"] for line in found["surest_of_missing"]] == ["d", "b", "e"]
    assert (found["n_there"], found["n_missing"], found["n_acc"], found["t_acc"]) == (2, 3, 1, 1)
