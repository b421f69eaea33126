"""Losses of boxes and of maps: where they are least, that they stay finite, and whom they leave out."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torchvision import ops

from vg_utils.boxes import to_cxcywh, to_xyxy
from vg_utils.config import BoxLoss, ConfigError
from vg_utils.models.iou_losses import complete_iou_loss, distance_iou_loss, generalized_iou_loss
from vg_utils.models.losses import (
    IOU_WEIGHT,
    L1_WEIGHT,
    box_loss_weights,
    box_losses,
    cells_in_box,
    heatmap_losses,
    masked_mean,
    present,
)

KINDS = get_args(BoxLoss)
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 4) centres and sizes of boxes inside the unit square."""
    generator = torch.Generator().manual_seed(seed)
    sides = 0.05 + 0.5 * torch.rand(count, 2, generator=generator)
    centres = sides / 2 + (1 - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([centres, sides], dim=1)


def value_and_gradient(kind: str, boxes: torch.Tensor, targets: torch.Tensor) -> tuple[dict, torch.Tensor]:
    boxes = boxes.clone().requires_grad_()
    losses = box_losses(kind, boxes, targets)
    sum(losses.values()).backward()
    return {name: value.item() for name, value in losses.items()}, boxes.grad


# --- boxes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (generalized_iou_loss, ops.generalized_box_iou_loss),
        (distance_iou_loss, ops.distance_box_iou_loss),
        (complete_iou_loss, ops.complete_box_iou_loss),
    ],
)
def test_overlap_losses_are_torchvisions_gradients_included(ours, theirs):
    boxes, targets = to_xyxy(random_boxes(500)), to_xyxy(random_boxes(500, seed=1))
    boxes[:40] = targets[:40]  # equal, then touching in a side, then within, then far off
    boxes[40:80] = targets[40:80] + torch.tensor([1, 0, 1, 0]) * (targets[40:80, 2:3] - targets[40:80, :1])
    boxes[80:120] = to_xyxy(to_cxcywh(targets[80:120]) * torch.tensor([1, 1, 0.5, 0.5]))
    boxes[120:160] += 2
    found = []
    for loss in (lambda a, b: theirs(a, b, reduction="none"), ours):
        one, other = boxes.clone().requires_grad_(), targets.clone().requires_grad_()
        each = loss(one, other)
        (each * torch.linspace(0.5, 1.5, len(each))).sum().backward()
        found.append((each.detach(), one.grad, other.grad))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@every_kind
def test_equal_boxes_cost_nothing_and_others_something(kind):
    targets = random_boxes(32)
    same = box_losses(kind, targets, targets)
    assert all(value.ndim == 0 for value in same.values())
    assert [value.item() for value in same.values()] == pytest.approx([0] * len(same), abs=1e-5)
    for number, part in enumerate(("x", "y", "width", "height")):  # each of the four numbers counts
        for row in range(4):
            moved = targets[row : row + 1].clone()
            moved[0, number] += 0.03
            for name, value in box_losses(kind, moved, targets[row : row + 1]).items():
                assert value > 1e-4, (name, part)
                farther = moved.clone()
                farther[0, number] += 0.05
                assert box_losses(kind, farther, targets[row : row + 1])[name] > value, (name, part)


@every_kind
def test_value_and_gradient_are_finite_wherever_the_prediction_lies(kind):
    targets = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.01, 0.99, 0.02, 0.02]])
    numbers = torch.tensor([-3.0, 0.0, 0.5, 1.0, 4.0])
    sizes = torch.tensor([-1.0, 0.0, 1e-12, 0.3, 5.0])
    predictions = torch.cartesian_prod(numbers, numbers, sizes, sizes)  # no size, inside out, far outside
    for target in targets:
        aim = target.expand(len(predictions), 4)
        for part in (predictions, aim):
            values, gradient = value_and_gradient(kind, part, aim)
            assert all(torch.tensor(value).isfinite() and value >= -1e-5 for value in values.values())
            assert gradient.isfinite().all()


@every_kind
def test_a_box_far_off_is_pulled_towards_its_target(kind):
    if kind in ("giou", "diou", "ciou"):
        start = torch.tensor([[0.15, 0.2, 0.1, 0.1]])  # disjoint from the target: plain IoU would be flat
    else:
        start = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    target = torch.tensor([[0.7, 0.6, 0.3, 0.2]])
    _, gradient = value_and_gradient(kind, start, target)
    assert (gradient[0, :2] < 0).all()


@every_kind
def test_rows_without_a_box_leave_value_and_gradient_as_they_are(kind):
    targets, boxes = random_boxes(6), random_boxes(6, seed=1)
    values, gradient = value_and_gradient(kind, boxes, targets)
    absent = torch.tensor([0, 3, 8])
    here = torch.tensor([i for i in range(9) if i not in absent])
    more_targets, more_boxes = torch.zeros(9, 4), random_boxes(9, seed=2)
    more_targets[here], more_boxes[here] = targets, boxes
    assert present(more_targets).nonzero().flatten().tolist() == here.tolist()
    more_values, more_gradient = value_and_gradient(kind, more_boxes, more_targets)
    assert more_values == pytest.approx(values, rel=1e-5)
    torch.testing.assert_close(more_gradient[here], gradient)
    assert not more_gradient[absent].any()


@every_kind
def test_no_box_at_all_costs_nothing(kind):
    values, gradient = value_and_gradient(kind, random_boxes(4), torch.zeros(4, 4))
    assert set(values.values()) == {0.0}
    assert not gradient.any()  # and is no NaN


@every_kind
def test_half_precision_predictions_are_compared_in_full(kind):
    boxes, targets = random_boxes(16).bfloat16(), random_boxes(16, seed=1)
    low, full = box_losses(kind, boxes, targets), box_losses(kind, boxes.float(), targets)
    assert low == full
    assert {value.dtype for value in low.values()} == {torch.float32}


def test_generalised_iou_by_hand():
    # Corners (0, 0, .4, .4) and (.2, .2, .6, .4): they share .2 x .2, cover .16 + .08 - .04 = .20 together,
    # and the box around both is .6 x .4 = .24.
    boxes, targets = torch.tensor([[0.2, 0.2, 0.4, 0.4]]), torch.tensor([[0.4, 0.3, 0.4, 0.2]])
    giou = 0.04 / 0.20 - (0.24 - 0.20) / 0.24
    assert box_losses("giou", boxes, targets)["giou"].item() == pytest.approx(1 - giou, rel=1e-4)
    # The centres are (.2, .1) apart, the diagonal around both is .36 + .16.
    diou = 0.04 / 0.20 - (0.04 + 0.01) / (0.36 + 0.16)
    assert box_losses("diou", boxes, targets)["diou"].item() == pytest.approx(1 - diou, rel=1e-4)


def test_absolute_errors_by_hand():
    boxes, targets = torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([[0.9, 0.5, 0.5, 0.48]])
    assert box_losses("l1", boxes, targets)["l1"].item() == pytest.approx((0.4 + 0.02) / 4, rel=1e-4)
    far, near = 0.4 - 0.1 / 2, 0.02**2 / (2 * 0.1)  # delta 0.1: straight beyond, a parabola within
    assert box_losses("huber", boxes, targets)["huber"].item() == pytest.approx((far + near) / 4, rel=1e-4)
    wide = box_losses("huber", boxes, targets, delta=1.0)["huber"].item()
    assert wide == pytest.approx((0.4**2 + 0.02**2) / 2 / 4, rel=1e-4)


@every_kind
def test_every_loss_has_its_weight(kind):
    weights, boxes = box_loss_weights(kind, 3.0), random_boxes(2)
    assert weights.keys() == box_losses(kind, boxes, boxes).keys() == set(kind.split("+"))
    usual = {"huber": 1.0, "l1": L1_WEIGHT, "giou": IOU_WEIGHT, "diou": IOU_WEIGHT, "ciou": IOU_WEIGHT}
    assert weights == {name: 3 * usual[name] for name in weights}
    assert box_loss_weights(kind) == {name: usual[name] for name in weights}


@pytest.mark.parametrize("kind", ["iou", "l1+", "", "l1+iou", "l1,giou"])
def test_a_loss_that_does_not_exist_is_a_wrong_setting(kind):
    with pytest.raises(ConfigError, match=r"box_loss: expected some of huber, l1, giou, diou, ciou"):
        box_loss_weights(kind)


def test_a_masked_mean_is_the_mean_of_what_is_left():
    values, mask = torch.tensor([1.0, float("nan"), 4.0, 10.0]), torch.tensor([True, False, True, False])
    assert masked_mean(values, mask) == 2.5
    assert masked_mean(values, torch.zeros(4, dtype=torch.bool)) == 0


# --- maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 4, 7])
def test_cells_are_those_whose_centres_lie_in_the_box(grid):
    boxes = torch.cat([random_boxes(200), torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.3, 0.6, 0.9, 0.02]])])
    found = cells_in_box(boxes, grid)
    assert found.shape == (len(boxes), grid, grid)
    assert found.dtype == torch.bool
    corners = to_xyxy(boxes).tolist()
    for number, (x1, y1, x2, y2) in enumerate(corners):
        wide, high = x2 - x1 > 1 / grid, y2 - y1 > 1 / grid
        for row in range(grid):
            for column in range(grid):
                x, y = (column + 0.5) / grid, (row + 0.5) / grid
                if min(abs(x - x1), abs(x - x2), abs(y - y1), abs(y - y2)) < 1e-5:
                    continue
                if x1 < x < x2 and y1 < y < y2:
                    assert found[number, row, column]
                elif wide and high:
                    assert not found[number, row, column]


def test_a_tiny_box_has_the_cell_around_its_middle_and_no_box_none():
    grid = 6
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(300, 2, generator=generator)
    centres = torch.cat([centres, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1 / 3, 0.9999]])])
    boxes = torch.cat([centres, torch.full_like(centres, 1e-5)], dim=1)
    found = cells_in_box(boxes, grid)
    own = (centres * grid).long().clamp(max=grid - 1)
    assert found[torch.arange(len(boxes)), own[:, 1], own[:, 0]].all()
    inside_a_cell = ((centres * grid) % 1 - 0.5).abs().amax(1) < 0.49
    assert (found[inside_a_cell].sum((1, 2)) == 1).all()
    assert not cells_in_box(torch.zeros(3, 4), grid).any()


def test_right_maps_cost_less_than_wrong_ones():
    boxes = torch.cat([random_boxes(12), torch.zeros(3, 4)])
    truth = cells_in_box(boxes, 8)
    right = torch.where(truth, 8.0, -8.0)

    def loss(logits: torch.Tensor, targets: torch.Tensor = boxes) -> float:
        return heatmap_losses(logits, targets).item()

    unsure = torch.zeros_like(right)
    assert 0 <= loss(right) < 0.02 < loss(right / 4) < loss(unsure) < loss(-right)
    moved = right.roll(4, dims=2)
    assert loss(moved, boxes) > 10 * loss(right)
    for row in range(len(boxes)):  # in every row, those without a box too
        worse = right.clone()
        worse[row] = -right[row]
        assert loss(worse) > loss(right) + 0.01
    nothing, everything = torch.full((3, 8, 8), -8.0), torch.full((3, 8, 8), 8.0)
    assert loss(nothing, torch.zeros(3, 4)) < 0.2 < loss(everything, torch.zeros(3, 4))


def test_maps_of_any_sureness_have_finite_gradients():
    boxes = torch.cat([random_boxes(3), torch.zeros(1, 4)])
    for size in (0.0, 5.0, 1e3, 1e4):
        for sign in (1, -1):
            logits = (sign * size * (cells_in_box(boxes, 5).float() * 2 - 1)).requires_grad_()
            loss = heatmap_losses(logits, boxes)
            loss.backward()
            assert loss.isfinite()
            assert logits.grad.isfinite().all()
