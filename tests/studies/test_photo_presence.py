"""What is asked of presence: categories with a box, and those that neither boxes nor words speak for."""

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
    ("text", "without_box"),
    [
        ("the left one", {"person", "cat", "chair", "couch", "dining table", "dog", "giraffe"}),
        ("the one behind two men", {"cat", "chair", "couch", "dining table", "dog", "giraffe"}),
        ("next to the sofas", {"person", "cat", "chair", "dining table", "dog", "giraffe"}),
        ("beside an animal", {"person", "chair", "couch", "dining table"}),
    ],
)
def test_what_may_be_there_is_not_asked(text, without_box):
    asked = photo_presence.questions([example(text, "car", "car")], COCO)
    assert set(asked["category"][asked["boxed"]]) == {"car"}  # nor the truck, which it may be
    assert set(asked["category"][~asked["boxed"]]) == without_box
    assert len(asked) == 1 + len(without_box)


def test_an_image_of_two_splits_is_asked_about_once():
    asked = photo_presence.questions(
        [
            example("the dog", "dog"),
            example("it", "cat"),
        ],
        COCO,
    )
    assert set(asked["category"][asked["boxed"]]) == {"cat", "dog"}
    assert not asked.duplicated().any()


def test_results_and_the_page(tiny_scenes, tmp_path, capsys):
    file = tmp_path / "presence.json"
    where = ("--people", str(tiny_scenes), "--checkpoint", "scenes/dense-grounder", "--out", str(file))
    assert photo_presence.main(where) == 0
    found = json.loads(file.read_text())
    assert found["all_objects_have_boxes"]
    low, high = found["presence_auroc_ci95"]
    assert 0.5 < low <= found["presence_auroc"] <= high
    page = report_photos.on_presence(found)
    assert f"**{found['presence_auroc']:.3f}**" in page
    assert "Only objects" not in page.replace("\n", " ")
    assert "Only objects" in report_photos.on_presence(found | {"all_objects_have_boxes": False}).replace(
        "\n", " "
    )
    assert photo_presence.main(("--people", str(tmp_path))) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_the_model_is_surest_of_is_listed():
    presence = [0.9, 0.2, 0.8, 0.4, 0.1]
    answers = pd.DataFrame({"image_id": [1, 1, 2, 2, 2], "category": list("abcde"), "presence": presence})
    answers["boxed"] = [True, False, True, False, False]
    found = photo_presence.results_of(answers)
    assert found["presence_auroc"] == auroc([0.9, 0.8], [0.2, 0.4, 0.1]) == 1
    assert [line["category"] for line in found["surest_without_box"]] == ["d", "b", "e"]
    assert (found["n_boxed"], found["n_without_box"], found["n_acc"], found["t_acc"]) == (2, 3, 1, 1)
