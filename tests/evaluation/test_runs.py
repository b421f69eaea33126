"""From predictions to rows: the right box beside the right expression, in the right pixels."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tiny import TOKENIZER, wide_example
from vg_utils.config import set_fields
from vg_utils.data import Expression, GroundingExample
from vg_utils.data.reviewed import Reviewed
from vg_utils.evaluation.columns import USUAL
from vg_utils.evaluation.confidence import auroc
from vg_utils.evaluation.metrics import summarise
from vg_utils.evaluation.rows import ask, constant_answer, eval_batches, make_rows, predict_rows
from vg_utils.evaluation.runs import Evaluation, evaluate, more_results
from vg_utils.evaluation.similarity import add_clip_similarity, judge_for
from vg_utils.models import build_model
from vg_utils.models.base import Features, GroundingModel
from vg_utils.predictor import Grounder
from vg_utils.training.loaders import load_split


class Knowing(GroundingModel):
    """Answers with given boxes of the model's square, told apart by the words: what comes out is geometry."""

    def __init__(self, batches) -> None:
        super().__init__()
        self.loss_weights = {"l1": 2.0}
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answers = {}
        for batch in batches:
            for tokens, box in zip(batch.tokens, batch.target_boxes_cxcywh, strict=True):
                self.answers[tuple(tokens[tokens > 0].tolist())] = box
        self.encoded = 0

    def encode_images(self, images: Tensor) -> Features:
        self.encoded += len(images)
        return {"nothing": images.new_zeros(len(images), 1)}

    def encode_texts(self, tokens: Tensor) -> Features:
        return {"tokens": tokens}

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        boxes = [self.answers[tuple(row[row > 0].tolist())] for row in text_features["tokens"]]
        return {"boxes_cxcywh": torch.stack(boxes), "score": torch.full((len(boxes),), 0.75)}

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        return {"l1": (outputs["boxes_cxcywh"] - target_boxes_cxcywh).abs().mean()}


def pictures() -> list[GroundingExample]:
    """Wide, tall, square and tiny ones, each expression in other words."""
    sizes = [(120, 50), (33, 97), (64, 64), (7, 5), (640, 480)]
    examples = []
    for image_id, (width, height) in enumerate(sizes, 1):
        boxes = [(0.1, 0.2, 0.6, 0.9), (0.5, 0.0, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0)][: 1 + image_id % 3]
        expressions = tuple(
            Expression(
                f"image {image_id} object {i}",
                (x1 * width, y1 * height, x2 * width, y2 * height),
                sent_id=image_id * 10 + i,
                ref_id=image_id * 100 + i,
                category=("cube", "sphere")[i % 2],
            )
            for i, (x1, y1, x2, y2) in enumerate(boxes)
        )
        image = Image.effect_noise((width, height), 60).convert("RGB")
        examples.append(GroundingExample(image, image_id, expressions, (width, height)))
    return examples


@pytest.mark.parametrize("batch_images", [1, 2, 64])
def test_exact_targets_score_one_in_any_picture(batch_images):
    examples = pictures()
    model = Knowing(eval_batches(examples, 96, TOKENIZER))
    rows, loss, _ = predict_rows(
        model, examples, eval_batches(examples, 96, TOKENIZER, batch_images), 96, "cpu"
    )
    asked = [(example, e) for example in examples for e in example.expressions]
    assert list(rows["sent_id"]) == [e.sent_id for _, e in asked]
    assert list(rows["text"]) == [e.text for _, e in asked]
    assert list(rows["image_id"]) == [example.image_id for example, _ in asked]
    assert list(zip(rows["width"], rows["height"], strict=True)) == [example.size_wh for example, _ in asked]
    truth = torch.tensor([e.box_xyxy for _, e in asked])
    torch.testing.assert_close(torch.tensor(rows[["tx1", "ty1", "tx2", "ty2"]].to_numpy()), truth)
    torch.testing.assert_close(
        torch.tensor(rows[["x1", "y1", "x2", "y2"]].to_numpy()), truth, atol=1e-3, rtol=1e-4
    )
    assert (rows["iou"] > 0.999).all()
    assert (rows["score"] == 0.75).all()
    assert loss == pytest.approx(0, abs=1e-6)
    assert model.encoded == len(examples)  # each image once


def test_the_loss_is_a_mean_over_expressions():
    examples = pictures()
    model = Knowing(eval_batches(examples, 96, TOKENIZER))
    for words, box in list(model.answers.items()):
        model.answers[words] = box * 0.5
    targets = torch.cat([batch.target_boxes_cxcywh for batch in eval_batches(examples, 96, TOKENIZER)])
    for batch_images in (2, 64):
        _, loss, _ = predict_rows(
            model, examples, eval_batches(examples, 96, TOKENIZER, batch_images), 96, "cpu"
        )
        assert loss == pytest.approx(2.0 * (targets * 0.5).abs().mean().item(), rel=1e-5)


def test_predictions_are_cut_to_the_picture():
    examples = [wide_example()]
    boxes = torch.tensor([[-5.0, -5.0, 60.0, 60.0], [10.0, 5.0, 50.0, 45.0], [200.0, 10.0, 300.0, 20.0]])
    rows = make_rows(examples, boxes, torch.ones(3))
    assert rows.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [0, 0, 60, 50]
    assert rows["iou"].tolist() == pytest.approx([1600 / 3000, 1.0, 0.0])
    assert rows["n_words"].tolist() == [3, 5, 2]
    assert rows["distractors"].tolist() == [0, 0, 1]


def test_a_constant_answer_is_a_share_of_each_picture():
    examples = pictures()
    rows = ask(constant_answer((0.1, 0.2, 0.6, 0.9)), examples)
    shares = rows[["x1", "y1", "x2", "y2"]].to_numpy() / rows[["width", "height"] * 2].to_numpy()
    torch.testing.assert_close(
        torch.tensor(shares).float(), torch.tensor([[0.1, 0.2, 0.6, 0.9]]).expand(len(rows), 4)
    )
    assert (rows.groupby("image_id")["iou"].first() > 0.999).all()  # the first of each is exactly that box


def test_ask_and_predict_rows_agree(tiny_config):
    examples = load_split(tiny_config, "val")
    model = build_model("clip-hrnet", tiny_config.model)
    rows, _, _ = predict_rows(model, examples, eval_batches(examples, 64, TOKENIZER), 64, "cpu")
    columns = ["x1", "y1", "x2", "y2"]

    def answer(example: GroundingExample) -> tuple[Tensor, Tensor]:
        mine = rows[rows["image_id"] == example.image_id]
        return torch.tensor(mine[columns].to_numpy()), torch.tensor(mine["score"].to_numpy())

    asked = ask(answer, examples)
    assert asked.equals(rows)


def test_similarity_of_the_true_box_to_itself_is_one(tiny_config):
    examples = load_split(tiny_config, "val")
    truth = torch.tensor([e.box_xyxy for example in examples for e in example.expressions])
    judge = judge_for(build_model("clip-hrnet", tiny_config.model), tiny_config.model, "cpu")
    rows = add_clip_similarity(make_rows(examples, truth, torch.ones(len(truth))), examples, judge, "cpu")
    assert rows["semantic_similarity"].tolist() == pytest.approx([1.0] * len(truth), abs=1e-5)
    assert rows["text_similarity"].between(-1, 1).all()
    assert set(rows["category_hit"].dropna()) <= {True, False}
    half = make_rows(examples, truth * torch.tensor([1.0, 1.0, 0.6, 0.6]), torch.ones(len(truth)))
    assert (add_clip_similarity(half, examples, judge, "cpu")["semantic_similarity"] < 0.9999).any()


def test_similarities_stay_with_their_rows_whatever_is_encoded_at_once(tiny_config, monkeypatch):
    examples = [*load_split(tiny_config, "val"), wide_example(image_id=9999)]
    judge = judge_for(None, tiny_config.model, "cpu")
    rows = ask(constant_answer((0.2, 0.2, 0.7, 0.8)), examples)
    together = add_clip_similarity(rows, examples, judge, "cpu")
    monkeypatch.setattr("vg_utils.evaluation.similarity.CROPS_AT_ONCE", 3)
    apart = add_clip_similarity(rows, examples, judge, "cpu")
    for column in ("semantic_similarity", "text_similarity"):
        assert together[column].tolist() == pytest.approx(apart[column].tolist(), abs=1e-5)
    reversed_examples = examples[::-1]
    other = ask(constant_answer((0.2, 0.2, 0.7, 0.8)), reversed_examples)
    other = add_clip_similarity(other, reversed_examples, judge, "cpu").set_index("sent_id")
    expected = together.set_index("sent_id")["semantic_similarity"]
    assert other.loc[expected.index, "semantic_similarity"].tolist() == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_an_unknown_category_has_no_vote(tiny_config):
    examples = pictures()
    first = examples[0]
    unlabelled = tuple(expression._replace(category="unknown") for expression in first.expressions)
    mixed = [replace(first, expressions=unlabelled), *examples[1:]]
    judge = judge_for(None, tiny_config.model, "cpu")
    rows = add_clip_similarity(ask(constant_answer((0, 0, 1, 1)), mixed), mixed, judge, "cpu")
    assert (rows["category_hit"].isna() == (rows["category"] == "unknown")).all()
    assert rows["category_hit"].isna().sum() == len(unlabelled)


def test_the_judge_is_not_bent_by_training(tiny_config):
    frozen = build_model("clip-hrnet", tiny_config.model)
    assert judge_for(frozen, tiny_config.model, "cpu") is frozen.clip
    config = set_fields(tiny_config, model__clip__tuning="full").model
    trained = build_model("clip-hrnet", config)
    with torch.no_grad():
        trained.clip.clip.visual.conv1.weight += 1
    judge = judge_for(trained, config, "cpu")
    assert judge is not trained.clip
    assert torch.equal(judge.clip.visual.conv1.weight, frozen.clip.clip.visual.conv1.weight)


# phrases that fit nothing


@pytest.fixture
def dense(tiny_config) -> GroundingModel:
    torch.manual_seed(0)
    return build_model("dense-grounder", set_fields(tiny_config, model__name="dense-grounder").model)


def test_absent_phrases_leave_the_rows_as_they_are(dense, tiny_config):
    examples = load_split(tiny_config, "val")
    alone = predict_rows(dense, examples, eval_batches(examples, 64, TOKENIZER, 3), 64, "cpu")
    both = predict_rows(dense, examples, eval_batches(examples, 64, TOKENIZER, 3, absent=None), 64, "cpu")
    assert {"presence", "score_logit", "presence_logit"} <= set(alone.rows)
    pd.testing.assert_frame_equal(both.rows, alone.rows, rtol=1e-3, atol=1e-3)
    assert summarise(both.rows)["miou"] == pytest.approx(summarise(alone.rows)["miou"], abs=1e-5)
    asked = [(example, phrase) for example in examples for phrase in example.absent]
    assert asked
    assert len(alone.absent) == 0
    assert set(alone.absent) == set(both.absent)
    for column, expected in {
        "image_id": [example.image_id for example, _ in asked],
        "sent_id": [phrase.sent_id for _, phrase in asked],
        "text": [phrase.text for _, phrase in asked],
        "family": [phrase.family for _, phrase in asked],
    }.items():
        assert both.absent[column].tolist() == expected
    assert both.absent["presence"].between(0, 1).all()
    assert both.absent[["x1", "y1", "x2", "y2"]].stack().between(0, 64).all()


def test_an_absent_phrase_has_the_answer_to_its_own_words(dense, tiny_config):
    examples = load_split(tiny_config, "val")[:2]
    first, second = (example.absent[0] for example in examples)
    swapped = [
        replace(examples[0], absent=(second._replace(sent_id=first.sent_id),)),
        replace(examples[1], absent=()),
    ]
    picked = [replace(example, absent=example.absent[:1]) for example in examples]
    one = predict_rows(dense, picked, eval_batches(picked, 64, TOKENIZER, absent=None), 64, "cpu").absent
    other = predict_rows(dense, swapped, eval_batches(swapped, 64, TOKENIZER, absent=None), 64, "cpu").absent
    assert one["text"].tolist() == [first.text, second.text]
    assert other["text"].tolist() == [second.text]
    asked = Grounder(dense, set_fields(tiny_config, model__name="dense-grounder"), "cpu")
    (answer,) = asked.set_image(examples[0].image).ground(second.text)
    assert other.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == pytest.approx(answer.box_xyxy, abs=1e-2)
    assert other.loc[0, "presence"] == pytest.approx(answer.presence, abs=1e-4)


def test_absent_phrases_are_asked_of_models_that_know_of_them(dense, tiny_config):
    examples = load_split(tiny_config, "test")
    where = ("RefScenes", "test")
    grounder = Grounder(dense, set_fields(tiny_config, model__name="dense-grounder"), "cpu")
    rows, results, absent = evaluate(grounder, examples, *where, similarity=False)
    assert results["n_absent"] == len(absent) == sum(len(example.absent) for example in examples)
    assert results["presence_auroc"] == pytest.approx(auroc(rows["presence"], absent["presence"]))
    for name in ("ece", "aurc", "presence_auroc", "presence_ece"):
        assert 0 <= results[name] <= 1
    assert results["n_expressions"] == len(rows) == sum(len(example.expressions) for example in examples)
    json.dumps(results)
    without = [replace(example, absent=()) for example in examples]
    _, results, absent = evaluate(grounder, without, *where, similarity=False)
    assert "ece" in results
    assert not [name for name in results if "presence" in name or "absent" in name]
    assert len(absent) == 0
    other = Grounder(build_model("clip-hrnet", tiny_config.model), tiny_config, "cpu")
    _, results, absent = evaluate(other, examples, *where, similarity=False)
    assert {"ece", "aurc"} <= set(results)
    assert not [name for name in results if "presence" in name or "absent" in name]
    assert absent is None


def test_results_of_a_model(tiny_config):
    examples = load_split(tiny_config, "test")
    model = build_model("clip-hrnet", tiny_config.model)
    grounder = Grounder(model, tiny_config, "cpu")
    rows, results, _ = evaluate(grounder, examples, "RefScenes", "test")
    keys = "model dataset split n_images n_expressions miou miou_ci95 acc@0.5 acc@0.75 acc@0.9 "
    keys += "semantic_similarity text_similarity category_recall seconds"
    assert set(keys.split()) <= results.keys()
    assert {column.key for column in USUAL} <= results.keys()
    assert (results["model"], results["dataset"], results["split"]) == ("clip-hrnet", "RefScenes", "test")
    assert results["n_images"] == 4
    assert results["n_expressions"] == len(rows) == sum(len(e.expressions) for e in examples)
    assert results["miou"] == pytest.approx(rows["iou"].mean())


def test_scores_without_what_a_review_flags():
    examples = pictures()
    rows = ask(constant_answer((0.1, 0.2, 0.6, 0.9)), examples)
    wrong = frozenset(rows["sent_id"][rows["iou"] < 0.5])
    found = more_results(Evaluation(rows, {}), reviewed=Reviewed(wrong, 99, 7, "the first", 5))
    assert json.loads(json.dumps(found)) == found
    (reviewed,) = found.values()
    assert (reviewed["n_records"], reviewed["n_unmatched"], reviewed["n_not_reviewed"]) == (99, 7, 5)
    assert reviewed["n_flagged"] == len(wrong) == len(rows) - reviewed["n_expressions"] > 0
    assert reviewed["acc@0.5"] == 1
    nothing = more_results(Evaluation(rows, {}), reviewed=Reviewed(frozenset(), 1, 0, "", 0))["reviewed"]
    assert summarise(rows).items() <= nothing.items()
    assert more_results(Evaluation(rows, {})) == {}
