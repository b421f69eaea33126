"""What is found, in the forms of other tools."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vg_utils.data import DataError
from vg_utils.models.prediction import Prediction, Predictions, check_phrases

FOUND = Predictions(
    [
        Prediction("the cup", (10.0, 20.5, 40.0, 80.0), 0.7, 0.9),
        Prediction("the cup", (0.0, 0.0, 5.0, 5.0), 0.2, 0.9, rank=1),
        Prediction("a spoon", (1.0, 2.0, 3.0, 5.0), 0.4),
    ]
)


def test_boxes_and_scores_are_tensors():
    assert FOUND.boxes_xyxy.tolist() == [list(p.box_xyxy) for p in FOUND]
    assert FOUND.scores.tolist() == pytest.approx([0.7, 0.2, 0.4])
    assert Predictions().boxes_xyxy.shape == (0, 4)


def test_a_frame_has_a_row_a_box():
    frame = FOUND.to_frame()
    assert list(frame) == ["phrase", "rank", "x1", "y1", "x2", "y2", "score", "presence"]
    assert frame.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [10, 20.5, 40, 80]
    assert frame["rank"].tolist() == [0, 1, 0]
    assert math.isnan(frame.loc[2, "presence"])
    assert list(Predictions().to_frame()) == list(frame)


def test_coco_has_width_and_height_and_a_category_a_phrase():
    results = json.loads(json.dumps(FOUND.to_coco(image_id=7)))
    assert results[0] == {
        "image_id": 7, "category_id": 1, "bbox": [10, 20.5, 30, 59.5], "score": 0.7, "phrase": "the cup"
    }  # fmt: skip
    assert [one["category_id"] for one in results] == [1, 1, 2]
    assert [one["category_id"] for one in FOUND.to_coco(7, [44, 44, 50])] == [44, 44, 50]


def test_supervision_takes_them():
    pytest.importorskip("supervision", reason="an optional extra")
    detections = FOUND.to_supervision()
    assert detections.xyxy.tolist() == FOUND.boxes_xyxy.tolist()
    assert detections["class_name"].tolist() == ["the cup", "the cup", "a spoon"]
    assert detections.class_id.tolist() == [0, 0, 1]
    assert len(Predictions().to_supervision()) == 0
    assert torch.from_numpy(detections.confidence).tolist() == pytest.approx([0.7, 0.2, 0.4])


def test_what_is_no_phrase_is_named():
    assert check_phrases("the cup") == ["the cup"]
    for wrong in ("", " \u200b", None, 7, ["the cup"]):
        with pytest.raises(DataError, match="phrase 2 of 2: expected text"):
            check_phrases(["the cup", wrong])
    with pytest.raises(DataError, match="expected text") as raised:
        check_phrases([" " * 10_000])
    assert len(str(raised.value)) < 200
