"""The closer look: nothing at first, then it mends boxes; and it changes nothing but them and their score."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.maps import batch_of, build_small, small_config, weighted_loss, without_gradient
from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import ConfigError
from vg_utils.models.base import GroundingModel
from vg_utils.models.inference import cast_weights, inference_copy
from vg_utils.models.refinement import (
    JITTERED,
    LEAST_IOU,
    POINTS,
    FineMap,
    Refinement,
    around,
    jittered,
    moved,
    refined_losses,
)
from vg_utils.training.loaders import load_split

NAME = "dense-grounder"
COUNT = 200


@pytest.fixture(scope="module")
def batch(tiny_scenes):
    """Four images with all their expressions and absent phrases."""
    return batch_of(load_split(small_config(NAME, data__root=str(tiny_scenes)), "train")[:4])


def build_refined(looks: int = 1, **changes) -> GroundingModel:
    """In evaluation, and it does move boxes, as after some training."""
    model = build_small(NAME, model__dense_grounder__refinements=looks, **changes).eval()
    nn.init.normal_(model.refinement.move.weight, std=0.1)
    return model


def random_boxes(count: int = COUNT) -> torch.Tensor:
    """(count, 4), centre and size, within the square."""
    sides = 0.1 + 0.4 * torch.rand(count, 2)
    return torch.cat([sides / 2 + (1 - sides) * torch.rand(count, 2), sides], dim=1)


def mean_iou(boxes: torch.Tensor, others: torch.Tensor) -> float:
    return paired_iou(to_xyxy(boxes), to_xyxy(others)).mean().item()


# --- as a part of the model --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("looks", [1, 2])
def test_before_training_it_answers_as_the_model_without_it(looks, batch):
    plain = build_small(NAME).eval()
    refined = build_small(NAME, model__dense_grounder__refinements=looks).eval()
    refined.load_state_dict(plain.state_dict(), strict=False)
    expected, found = (m.predict(batch.images, batch.tokens, batch.image_index) for m in (plain, refined))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    new = found.keys() - expected.keys()
    assert new == {"first_cxcywh", "quality_logit", "starts_cxcywh", "refined_cxcywh"}
    assert plain.prepare_images(plain.encode_images(batch.images)).keys() == {"cells", "prepared"}


@torch.no_grad()
def test_a_phrase_looks_at_its_own_image_whatever_else_is_asked(batch):
    model = build_refined(looks=2)
    together = model.predict(batch.images, batch.tokens, batch.image_index)
    assert (together["boxes_cxcywh"] - together["first_cxcywh"]).abs().amax(1).min() > 1e-4
    for number in range(len(batch.images)):
        rows = batch.image_index == number
        index = torch.zeros(int(rows.sum()), dtype=torch.long)
        prepared = model.prepare_images(model.encode_images(batch.images[number, None]))
        alone = model(prepared, model.encode_texts(batch.tokens[rows]), index)
        for name in ("boxes_cxcywh", "score"):
            torch.testing.assert_close(alone[name], together[name][rows], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pyramid__levels": (3, 4)},
        {"pyramid__levels": (1, 4), "pyramid__hrnet": False},
    ],
    ids=str,
)
def test_all_of_it_trains_on_whatever_level_is_finest(changes, batch):
    model = build_refined(**{f"model__{name}": value for name, value in changes.items()}).train()
    fine = model.prepare_images(model.encode_images(batch.images))["fine"]
    stride = {None: 8, (3, 4): 16, (1, 4): 4}[changes.get("pyramid__levels")]
    assert fine.shape[2:] == (64 // stride, 64 // stride)
    for targets in (batch.target_boxes_cxcywh, torch.zeros_like(batch.target_boxes_cxcywh)):
        model.zero_grad()
        outputs = model.predict(batch.images, batch.tokens, batch.image_index)
        assert outputs["refined_cxcywh"].shape[1:] == (1, 1 + JITTERED, 4)
        weighted_loss(model, outputs, targets).backward()
        assert without_gradient(model) == set()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_the_copy_that_answers_mends_the_same_boxes_in_half_precision_too(batch):
    model = build_refined(looks=2)
    asked = batch.images, batch.tokens, batch.image_index
    copied = inference_copy(model, "cpu")
    torch.testing.assert_close(copied.predict(*asked), model.predict(*asked), atol=2e-4, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = copied.predict(*asked)
        cast_weights(copied, torch.bfloat16)
        torch.testing.assert_close(copied.predict(*asked), expected, atol=0, rtol=0)
    assert expected["boxes_cxcywh"].dtype == expected["score"].dtype == torch.float32
    whole = model.predict(*asked)
    assert mean_iou(expected["boxes_cxcywh"], whole["boxes_cxcywh"]) > 0.9


def test_more_looks_than_can_be_are_refused():
    message = "model.dense_grounder.refinements: expected a whole number from 0 to 64, got 65"
    with pytest.raises(ConfigError, match=message):
        small_config(NAME, model__dense_grounder__refinements=65)


# --- its losses --------------------------------------------------------------------------------------------


def test_a_start_beside_the_target_and_a_phrase_without_one_teach_nothing():
    torch.manual_seed(0)
    targets = random_boxes()
    targets[::4] = 0  # of phrases that fit nothing
    starts = torch.stack([random_boxes(), jittered(random_boxes()[:, None])[:, 0]], dim=1)[:, None]
    starts[::2, 0, 0] = moved(targets, torch.tensor([0.2, 0.0, 0.1, 0.0]))[::2]
    refined = starts.clone().requires_grad_()
    losses = refined_losses("l1+giou", {"starts_cxcywh": starts, "refined_cxcywh": refined}, targets)
    assert losses.keys() == {"refined_l1", "refined_giou"}
    sum(losses.values()).backward()
    iou = [paired_iou(to_xyxy(starts[:, 0, s]), to_xyxy(targets)) for s in (0, 1)]
    near = (torch.stack(iou, dim=1) >= LEAST_IOU) & (targets[:, 2:3] > 0)
    assert 0 < near.sum() < near.numel()
    assert torch.equal(refined.grad[:, 0].any(2), near)


def test_losses_are_none_at_the_truth():
    targets = random_boxes()
    starts = jittered(targets[:, None])[:, None]  # (N, 1, 1, 4)
    outputs = {"starts_cxcywh": starts, "refined_cxcywh": targets[:, None, None]}
    assert all(loss < 1e-3 for loss in refined_losses("l1+giou", outputs, targets).values())


# --- its parts ---------------------------------------------------------------------------------------------


def test_a_box_can_be_moved_to_any_that_is_not_much_larger_or_smaller():
    boxes, others = random_boxes(), random_boxes()
    near = (boxes[:, 2:] / others[:, 2:]).log().abs().amax(1) < 1.3
    moves = torch.cat([(others - boxes)[:, :2] / boxes[:, 2:], (others / boxes)[:, 2:].log()], dim=1)
    torch.testing.assert_close(moved(boxes, moves)[near], others[near])
    wild = moved(boxes, 1e4 * torch.randn_like(boxes))
    assert wild.isfinite().all()
    assert (wild[:, 2:] > 0).all()


def test_jitter_makes_boxes_that_overlap_by_little_and_by_much():
    torch.manual_seed(0)
    boxes = random_boxes(2000)
    made = jittered(boxes[:, None])[:, 0]
    iou = paired_iou(to_xyxy(made), to_xyxy(boxes))
    low, middle, high = iou.quantile(torch.tensor([0.05, 0.5, 0.9])).tolist()
    assert LEAST_IOU < low < 0.5 < middle < 0.8 < high
    assert (made - boxes).mean(0).abs().max() < 0.02  # to no side more than to another


def test_what_lies_around_a_box_is_read_where_it_lies():
    """Maps of each cell's own x and y give the places of the grid's points."""
    side = 32
    axis = (torch.arange(side) + 0.5) / side
    maps = torch.stack([axis.expand(side, side), axis[:, None].expand(side, side)])
    maps = torch.stack([torch.zeros_like(maps), maps])  # of two images
    box = torch.tensor([[[0.5, 0.4, 0.3, 0.2]]])
    x, y = around(maps, box, torch.tensor([1]))[0]
    assert x.shape == (POINTS, POINTS)
    torch.testing.assert_close(x[0], 0.5 + 0.3 * 1.3 * ((torch.arange(7) + 0.5) / 7 - 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        y[:, 0], 0.4 + 0.2 * 1.3 * ((torch.arange(7) + 0.5) / 7 - 0.5), atol=1e-4, rtol=0
    )
    assert not around(maps, box, torch.tensor([0])).any()


def test_it_learns_to_mend_boxes_of_rectangles():
    torch.manual_seed(0)
    fine_map, refinement = FineMap(1, 8), Refinement(8, looks=1, dropout=0.0)
    parts = nn.ModuleList([fine_map, refinement])
    optimizer = torch.optim.Adam(parts.parameters(), lr=2e-3)

    def mended(targets: torch.Tensor, boxes: torch.Tensor) -> dict[str, torch.Tensor]:
        axis = (torch.arange(16) + 0.5) / 16
        inside = targets[:, None, 2:] / 2 - (axis[:, None] - targets[:, None, :2]).abs()  # (N, 16, 2)
        covered = (inside * 16 + 0.5).clamp(0, 1)  # shares of cells, across and down
        images = (covered[:, :, None, 1] * covered[:, None, :, 0])[:, None]  # (N, 1, 16, 16)
        fine = fine_map(images, torch.zeros(len(images), 8, 4, 4))
        cells = torch.zeros(len(images), 16, 8)
        return refinement(fine, cells, torch.arange(len(images)), boxes)

    for _ in range(60):
        targets = random_boxes(8)
        outputs = mended(targets, jittered(targets[:, None])[:, 0])
        optimizer.zero_grad()
        sum(refined_losses("l1+giou", outputs, targets).values()).backward()
        optimizer.step()
    parts.eval()
    targets = random_boxes()
    starts = jittered(targets[:, None])[:, 0]
    with torch.no_grad():
        boxes = mended(targets, starts)["boxes_cxcywh"]
    before, after = mean_iou(starts, targets), mean_iou(boxes, targets)
    assert before < 0.7 < 0.8 < after
