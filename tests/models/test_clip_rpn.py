"""The ClipRPN project's systems: proposals by hand and against torchvision's, fusions, learning, recall."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList

from tests.tiny import TOKENIZER
from vg_utils.boxes import to_xyxy
from vg_utils.config import ClipConfig, ClipRPNConfig, Config, ConfigError, ModelConfig, TrainConfig
from vg_utils.data.batches import GroundingDataset, collate
from vg_utils.data.examples import Expression, GroundingExample
from vg_utils.data.transforms import EvalTransform
from vg_utils.evaluation.metrics import summarise
from vg_utils.evaluation.rows import eval_batches, predict_rows
from vg_utils.models import build_model
from vg_utils.models.clip import tokenize
from vg_utils.models.clip_rpn import AttentionFusion, ConcatFusion
from vg_utils.models.proposals import ProposalNetwork, moved, moves
from vg_utils.predictor import Grounder
from vg_utils.presets import preset
from vg_utils.training.optim import make_optimizer, make_scheduler

NAMES = ("clip-rpn-concat", "clip-rpn-attention")
VARIANTS = (("clip-rpn-concat", "pooled"), ("clip-rpn-attention", "pooled"), ("clip-rpn-attention", "tokens"))
PLACES = {  # colour -> corners in an image of 128 x 128
    "red": (10, 12, 50, 60),
    "green": (70, 8, 120, 40),
    "blue": (8, 76, 44, 124),
    "white": (66, 60, 122, 120),
}


def config_for(name: str, attend_to: str = "pooled", size: int = 64, **head) -> Config:
    """A small model with random weights; everything in the backbone is frozen."""
    clip = ClipConfig(name="scenes-rn", weights="random")
    settings = ClipRPNConfig(**{"attend_to": attend_to, "channels": 128, "feed_forward": 128} | head)
    model = ModelConfig(name=name, image_size=size, clip=clip, clip_rpn=settings)
    return replace(preset("scenes", name), model=model)


def build(name: str, attend_to: str = "pooled", size: int = 64, **head):
    torch.manual_seed(0)
    return build_model(name, config_for(name, attend_to, size, **head).model)


def wake(model, images: torch.Tensor) -> None:
    """Give a random trunk a map like a trained one's: as it starts, its values are near 0."""
    visual = model.clip.clip.visual
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0
            nn.init.ones_(module.weight)
    model.encode_images(images)
    visual.eval()


@pytest.fixture(scope="module")
def examples() -> list[GroundingExample]:
    """Four images with two coloured blocks each, other pairs of places each time, and a phrase a block."""
    made = []
    for i, (first, second) in enumerate(
        (("red", "green"), ("red", "blue"), ("blue", "green"), ("white", "red"))
    ):
        picture = Image.new("RGB", (128, 128), "grey")
        expressions = []
        for j, (colour, place) in enumerate(((first, second), (second, first))):
            box = PLACES[place]
            ImageDraw.Draw(picture).rectangle(box, fill=colour)
            xyxy = tuple(float(v) for v in box)
            expressions.append(
                Expression(colour, xyxy, sent_id=2 * i + j, ref_id=2 * i + j, category="block")
            )
        made.append(GroundingExample(picture, i, tuple(expressions), picture.size))
    return made


def network(size: int = 64, **settings) -> ProposalNetwork:
    """One channel, cells of 32 pixels, and one square anchor of 32 pixels in each."""
    one = {"anchor_sizes": (32 * 640 // size,), "anchor_ratios": (1.0,)}
    return ProposalNetwork(1, size, 32, ClipRPNConfig(**one | settings))


# --- proposals ---------------------------------------------------------------------------------------------


def test_anchors_of_the_seed_scale_with_the_input():
    anchors = ProposalNetwork(8, 640, 32, ClipRPNConfig()).anchors
    assert anchors.shape == (20 * 20 * 15, 4)
    sides = (anchors[:15, 2:] - anchors[:15, :2]).tolist()
    squares = sorted(w for w, h in sides if w == h)
    assert squares == [32, 64, 128, 256, 512]
    ratios = torch.tensor([h / w for w, h in sides]).view(3, 5).mean(dim=1)
    torch.testing.assert_close(ratios, torch.tensor([0.5, 1.0, 2.0]), atol=0.05, rtol=0)
    small = ProposalNetwork(8, 320, 32, ClipRPNConfig()).anchors
    assert (small[:15, 2:] - small[:15, :2]).max() == 362  # 512 / 2 with sides 1 : 2, in whole pixels


def test_matching_and_losses_by_hand():
    net = network()
    # The anchors' centres are the cells' upper left corners: (0, 0), (32, 0), (0, 32), (32, 32).
    assert net.anchors.tolist()[3] == [16, 16, 48, 48]
    # Overlaps: 0; 32 * 12 / (2048 - 384) = 0.23, between the thresholds; 0;
    # and 32 * 20 / (2048 - 640) = 0.45, below the threshold of an object but the best.
    target = torch.tensor([[16.0, 4.0, 48.0, 36.0]])
    assert net.match(target).tolist() == [[0, -1, 0, 1]]
    logits = torch.tensor([[0.0, 9.0, math.log(3), math.log(3)]])
    losses = net.losses(logits, torch.zeros(1, 4, 4), target)
    # Probabilities 1/2, ignored, 3/4, 3/4 for background, ignored, background, object.
    entropy = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert losses["objectness"].item() == pytest.approx(entropy, rel=1e-5)
    # The true centre is 12 pixels above the anchor's, 12/32 of its height; smooth L1 with beta 1/9, a third.
    assert losses["box_regression"].item() == pytest.approx((12 / 32 - 0.5 / 9) / 3, rel=1e-5)


def test_losses_are_torchvisions_where_all_anchors_are_sampled():
    torch.manual_seed(1)
    net = ProposalNetwork(8, 128, 32, ClipRPNConfig(sampled_anchors=10_000)).train()
    fused = torch.randn(6, 8, 4, 4)
    corners = torch.rand(6, 2, 2).mul(120).sort(dim=1).values
    targets = (corners + torch.tensor([[0.0, 0.0], [6.0, 6.0]])).flatten(1)
    images = ImageList(torch.zeros(6, 3, 128, 128), [(128, 128)] * 6)
    _, expected = net.rpn(images, {"0": fused}, [{"boxes": t[None]} for t in targets])
    losses = net.losses(*net(fused), targets)
    torch.testing.assert_close(losses["objectness"], expected["loss_objectness"])
    torch.testing.assert_close(losses["box_regression"], expected["loss_rpn_box_reg"])


def test_sampling_takes_half_objects_and_fills_up_with_background():
    net = network(sampled_anchors=8)
    labels = torch.full((3, 40), -1.0)
    labels[:, :20] = 0
    labels[0, 20:30], labels[1, 20:22], labels[2, 2:20] = 1, 1, -1
    objects, background = net.sample(labels)
    assert objects.sum(dim=1).tolist() == [4, 2, 0]
    assert background.sum(dim=1).tolist() == [4, 6, 2]
    assert (labels[objects] == 1).all()
    assert (labels[background] == 0).all()


def test_the_cell_that_is_right_gives_its_box():
    net = network(size=128).eval()
    with torch.no_grad():
        for parameter in net.rpn.head.parameters():
            parameter.zero_()
        net.rpn.head.conv[0][0].weight[0, 0, 1, 1] = 1  # passes the map on
        net.rpn.head.cls_logits.weight.fill_(20)
        net.rpn.head.cls_logits.bias.fill_(-10)
        net.rpn.head.bbox_pred.bias[:] = torch.tensor([0.5, 0.5, 0.0, math.log(0.5)])
    fused = torch.zeros(2, 1, 4, 4)
    fused[0, 0, 1, 2] = fused[1, 0, 3, 0] = 1
    boxes, scores = net.propose(*net(fused))
    # Centres of the anchors: 32 times column and row. Half a side further right and down, half as high.
    assert boxes[:, 0].tolist() == [[64, 40, 96, 56], [0, 104, 32, 120]]
    assert scores[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-10))] * 2)
    best, best_scores = net.best(*net(fused))
    torch.testing.assert_close(best, boxes[:, 0])
    torch.testing.assert_close(best_scores, scores[:, 0])
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_proposals_are_torchvisions():
    torch.manual_seed(5)
    net = network(size=128, before_nms=30, kept=12, nms_iou=0.5).eval()
    n, count = 40, len(net.anchors)
    logits, deltas = torch.randn(n, count), 0.7 * torch.randn(n, count, 4)
    deltas[::4, ::3, 2] = -40  # no width
    deltas[:9, 3:, 2:] = -40  # nearly nothing left of these
    decoded = net.rpn.box_coder.decode_single(deltas.flatten(0, 1), net.anchors.repeat(n, 1))
    expected = net.rpn.filter_proposals(decoded.view(n, count, 4), logits, [net.shape] * n, [count])
    boxes, scores = net.propose(logits, deltas)
    lengths = {len(some) for some in expected[0]}
    assert len(lengths) > 2  # some are filled up, some are not
    for number, (wanted_boxes, wanted_scores) in enumerate(zip(*expected, strict=True)):
        if len(wanted_scores):
            torch.testing.assert_close(boxes[number, : len(wanted_boxes)], wanted_boxes)
            torch.testing.assert_close(scores[number, : len(wanted_scores)], wanted_scores)
            assert scores[number, len(wanted_scores) :].eq(0).all()


def test_a_phrase_without_proposals_gets_its_best_anchor():
    net = network(size=64).eval()
    deltas = torch.zeros(2, 4, 4)
    deltas[1, :, 2:] = -40  # all boxes shrink to nothing and are filtered out
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    boxes, scores = net.propose(logits, deltas)
    assert boxes[0, 0].tolist() == [16, 16, 48, 48]
    torch.testing.assert_close(boxes[1, 0], torch.tensor([32.0, 32.0, 32.0, 32.0]))
    torch.testing.assert_close(scores[:, 0], torch.tensor([3.0, 3.0]).sigmoid())
    assert scores[1, 1:].eq(0).all()
    boxes, _ = net.propose(logits, deltas[[1, 1]])
    assert boxes.shape == (2, 100, 4)


# --- fusion ------------------------------------------------------------------------------------------------


def inputs_for(model, lengths=(3, 5, 4)):
    """Two images and three phrases, the second and third of one image."""
    torch.manual_seed(3)
    side = model.image_size // 32
    maps = torch.randn(2, model.clip.map_channels, side, side)
    text = {
        "pooled": F.normalize(torch.randn(3, model.clip.embed_dim), dim=1),
        "tokens": torch.randn(3, max(lengths), model.clip.text_width),
        "mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float(),
    }
    return maps, text, torch.tensor([0, 1, 1])


def test_concatenation_equals_the_seeds_way():
    model = build("clip-rpn-concat")
    assert isinstance(model.fusion, ConcatFusion)
    maps, text, index = inputs_for(model)
    repeated = text["pooled"][:, :, None, None].expand(-1, -1, *maps.shape[2:])
    naive = model.fusion.conv(torch.cat([maps[index], repeated], dim=1))
    torch.testing.assert_close(
        model.fusion(model.fusion.prepare(maps), text, index), naive, atol=1e-5, rtol=1e-4
    )


def test_attention_to_one_vector_answers_all_positions_alike():
    model = build("clip-rpn-attention").eval()
    maps, text, index = inputs_for(model)
    queries = model.fusion.project(maps).flatten(2).transpose(1, 2)[index]
    answers = model.fusion.attend(queries, text)
    torch.testing.assert_close(answers, answers[:, :1].expand_as(answers))
    assert (answers[1, 0] - answers[2, 0]).abs().max() > 1e-3  # but each phrase has its own
    answers.square().sum().backward()
    assert model.fusion.attention.q_proj_weight.grad.abs().max() < 1e-6  # and the queries learn nothing
    assert model.fusion.attention.v_proj_weight.grad.abs().max() > 1e-3


def test_attention_to_tokens_answers_each_position_and_ignores_padding():
    model = build("clip-rpn-attention", "tokens").eval()
    assert isinstance(model.fusion, AttentionFusion)
    maps, text, index = inputs_for(model)
    queries = model.fusion.project(maps).flatten(2).transpose(1, 2)[index]
    answers = model.fusion.attend(queries, text)
    spread = (answers - answers.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2))
    assert (spread > 1e-3).all()
    other = text | {"tokens": torch.where(text["mask"][..., None] > 0, text["tokens"], 7.0)}
    torch.testing.assert_close(
        model.fusion(model.fusion.prepare(maps), other, index),
        model.fusion(model.fusion.prepare(maps), text, index),
    )
    # A cache pads with zeros and keeps half the digits.
    padded = {name: F.pad(t, (0, 0) * (t.ndim - 2) + (0, 4)).half().float() for name, t in text.items()}
    torch.testing.assert_close(
        model.fusion(model.fusion.prepare(maps), padded, index),
        model.fusion(model.fusion.prepare(maps), text, index),
        atol=5e-3,
        rtol=1e-2,
    )


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match=r"heads.*divisor of the fused map's 128 channels, got 7"):
        build("clip-rpn-attention", heads=7)
    with pytest.raises(ConfigError, match="attend_to: expected pooled or tokens, got 'words'"):
        ClipRPNConfig(attend_to="words")


def test_presets():
    for name in NAMES:
        train = preset("refcocog", name).train
        assert (train.optimizer, train.lr, train.weight_decay) == ("adam", 2.7e-4, 0.0)
    assert preset("refcocog").train.optimizer == "adamw"
    model = preset("refcocog", NAMES[1]).model
    assert model.clip.tuning == model.clip.text_tuning == "frozen"
    assert (model.clip_rpn.heads, model.clip_rpn.attend_to, model.clip_rpn.channels) == (16, "pooled", 0)


# --- the models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "attend_to"), VARIANTS)
def test_overfits_a_batch_and_leaves_the_trunk_alone(name, attend_to, examples):
    steps, size = 120, 96
    settings = {"size": size, "channels": 256, "dropout": 0.0}
    model = build(name, attend_to, **settings).train()
    dataset = GroundingDataset(examples, EvalTransform(size))
    batch = collate([dataset[i] for i in range(len(examples))], TOKENIZER)
    wake(model, batch.images)
    before = {key: value.clone() for key, value in model.clip.state_dict().items()}
    train = TrainConfig(lr=2e-3, weight_decay=0.0)
    optimizer = make_optimizer(model, train)
    scheduler = make_scheduler(optimizer, train, steps)
    features = model.encode_images(batch.images), model.encode_texts(batch.tokens)  # frozen: once will do
    for _ in range(steps):
        outputs = model(*features, batch.image_index)
        losses = model.losses(outputs, batch.target_boxes_cxcywh)
        loss = sum(weight * losses[key] for key, weight in model.loss_weights.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.predict(batch.images, batch.tokens, batch.image_index)  # in training mode: BatchNorm would move
    assert "proposals_cxcywh" not in outputs
    after = model.clip.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    rows, val_loss, _ = predict_rows(model, examples, [batch], size, "cpu")
    summary = summarise(rows)
    assert summary["miou"] > 0.8
    assert val_loss < 0.2
    recalls = [summary[f"proposal_recall@{k}"] for k in (1, 5, 20)]
    assert recalls == sorted(recalls)
    assert recalls[0] == summary["acc@0.5"]


@pytest.mark.parametrize(("name", "attend_to"), VARIANTS)
def test_outputs(name, attend_to, examples):
    model = build(name, attend_to).eval()
    batch = next(iter(eval_batches(examples, 64, TOKENIZER)))
    image_features, text_features = model.encode_images(batch.images), model.encode_texts(batch.tokens)
    assert image_features["map"].shape == (4, model.clip.map_channels, 2, 2)
    assert set(text_features) == ({"tokens", "mask"} if attend_to == "tokens" else {"pooled"})
    outputs = model(image_features, text_features, batch.image_index)
    n, anchors = 8, 2 * 2 * 15
    shapes = {key: tuple(value.shape) for key, value in outputs.items()}
    assert shapes == {
        "boxes_cxcywh": (n, 4),
        "score": (n,),
        "objectness": (n, anchors),
        "deltas": (n, anchors, 4),
        "proposals_cxcywh": (n, 100, 4),
        "proposal_scores": (n, 100),
    }
    assert all(value.dtype == torch.float32 for value in outputs.values())
    corners = to_xyxy(outputs["boxes_cxcywh"])
    assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()
    assert ((outputs["score"] >= 0) & (outputs["score"] <= 1)).all()
    assert all(p.requires_grad is False for p in model.clip.parameters())
    # A phrase's answer does not depend on what else is asked.
    alone = model.predict(batch.images[2:3], batch.tokens[5:6], torch.tensor([0]))
    torch.testing.assert_close(alone["boxes_cxcywh"], outputs["boxes_cxcywh"][5:6], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "attend_to"), VARIANTS)
def test_reduced_precision_leaves_boxes_and_losses_whole(name, attend_to, examples):
    model = build(name, attend_to).eval()
    batch = next(iter(eval_batches(examples, 64, TOKENIZER)))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.predict(batch.images, batch.tokens, batch.image_index)
        losses = model.losses(outputs, batch.target_boxes_cxcywh)
    assert {value.dtype for value in (outputs | losses).values()} == {torch.float32}
    assert all(value.isfinite().all() for value in (outputs | losses).values())


def test_all_that_is_left_trainable_learns(examples):
    """A parameter that is trainable but never used stops distributed training."""
    for name, attend_to in VARIANTS:
        config = config_for(name, attend_to)
        clip = replace(config.model.clip, tuning="full", text_tuning="full")
        model = build_model(name, replace(config.model, clip=clip)).train()
        batch = next(iter(eval_batches(examples[:2], 64, TOKENIZER)))
        outputs = model.predict(batch.images, batch.tokens, batch.image_index)
        sum(model.losses(outputs, batch.target_boxes_cxcywh).values()).backward()
        assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_recall_of_proposals_in_original_pixels(examples):
    """On a letterboxed image whose second proposal is the right one."""
    wide = Image.new("RGB", (200, 100))
    truth = (20.0, 10.0, 120.0, 60.0)
    expression = Expression("it", truth, sent_id=1, ref_id=1, category="block")
    example = GroundingExample(wide, 9, (expression,), wide.size)
    model = build("clip-rpn-concat").eval()
    batch = next(iter(eval_batches([example], 64, TOKENIZER)))
    right = batch.target_boxes_cxcywh[:, None]  # (1, 1, 4)
    wrong = torch.tensor([0.9, 0.5, 0.1, 0.1]).expand(1, 1, 4)
    canned = {
        "boxes_cxcywh": wrong[:, 0],
        "score": torch.ones(1),
        "objectness": torch.zeros(1, 60),
        "deltas": torch.zeros(1, 60, 4),
        "proposals_cxcywh": torch.cat([wrong, right, torch.zeros(1, 1, 4)], dim=1),
    }
    model.forward = lambda *_: canned
    rows, _, _ = predict_rows(model, [example], [batch], 64, "cpu")
    assert rows["proposal_iou@1"].item() == rows["iou"].item() == 0
    assert rows["proposal_iou@5"].item() == pytest.approx(1, abs=1e-4)
    assert rows["proposal_iou@20"].item() == rows["proposal_iou@5"].item()
    summary = summarise(rows)
    assert [summary[f"proposal_recall@{k}"] for k in (1, 5, 20)] == [0, 1, 1]
    assert "proposal_recall@1" not in summarise(rows.drop(columns=[c for c in rows if "proposal" in c]))


@pytest.mark.parametrize("name", NAMES)
def test_odd_pictures(name):
    grounder = Grounder(build(name), config_for(name), device="cpu")
    for mode, (width, height) in (("L", (90, 60)), ("RGB", (50, 1)), ("RGB", (6000, 40))):
        predictions = grounder.set_image(Image.new(mode, (width, height))).ground(["the dog", "a cat"])
        assert len(predictions) == 2
        for prediction in predictions:
            x1, y1, x2, y2 = prediction.box_xyxy
            assert 0 <= x1 <= x2 <= width
            assert 0 <= y1 <= y2 <= height
            assert 0 <= prediction.score <= 1


def test_full_size():
    model = build_model(
        "clip-rpn-attention",
        ModelConfig(name="clip-rpn-attention", clip=ClipConfig(weights="random")),
    ).eval()
    with torch.inference_mode():
        image_features = model.encode_images(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
        text_features = model.encode_texts(tokenize(["the dog", "a cat"]))
        assert image_features["map"].shape == (1, 2048, 7, 7)
        assert text_features["pooled"].shape == (2, 1024)
        torch.testing.assert_close(text_features["pooled"].norm(dim=1), torch.ones(2))
        index = torch.zeros(2, dtype=torch.long)
        assert model.fusion(model.fusion.prepare(image_features["map"]), text_features, index).shape == (
            2,
            2048,
            7,
            7,
        )
        outputs = model(image_features, text_features, index)
    assert outputs["objectness"].shape == (2, 735)
    assert outputs["boxes_cxcywh"].shape == (2, 4)


def test_moves_are_torchvisions():
    torch.manual_seed(0)
    corners = 100 * torch.rand(2, 60, 2)
    anchors, boxes = torch.cat([corners, corners + 5 + 50 * torch.rand(2, 60, 2)], dim=2)
    coder, deltas = BoxCoder((1.0, 1.0, 1.0, 1.0)), 3 * torch.randn(60, 4)
    torch.testing.assert_close(moves(anchors, boxes), coder.encode_single(boxes, anchors))
    torch.testing.assert_close(moved(anchors, deltas), coder.decode_single(deltas, anchors))
    torch.testing.assert_close(moved(anchors, moves(anchors, boxes)), boxes)
