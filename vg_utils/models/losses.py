"""The losses that several models share: of boxes, and of maps that say which cells lie in the box.

A phrase that fits nothing in the image has a target box of zeros; its row counts in no loss of boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import BoxLoss, ConfigError
from vg_utils.models.iou_losses import complete_iou_loss, distance_iou_loss, generalized_iou_loss

L1_WEIGHT, IOU_WEIGHT = 5.0, 2.0  # DETR's (Carion et al. 2020, section A.4), as TransVG's in ratio
MIN_SIDE = 1e-4  # shares of the image: a thinner box has no complete IoU

_OVERLAPS = {"giou": generalized_iou_loss, "diou": distance_iou_loss, "ciou": complete_iou_loss}


def box_loss_weights(kind: BoxLoss, weight: float = 1.0) -> dict[str, float]:
    """The weight of each loss that `box_losses` names, `weight` times what is usual.

    Raises:
        ConfigError: no such loss.
    """
    usual = {"huber": 1.0, "l1": L1_WEIGHT} | dict.fromkeys(_OVERLAPS, IOU_WEIGHT)
    terms = kind.split("+")
    if any(term not in usual for term in terms):
        raise ConfigError(f"box_loss: expected some of {', '.join(usual)}, joined by +, got {kind!r}")
    return {term: weight * usual[term] for term in terms}


def box_losses(kind: BoxLoss, boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor, delta: float = 0.1) -> dict:
    """Losses of predicted boxes, by name: means over the rows that have a box.

    Args:
        kind: "huber", "l1", "giou", "diou", "ciou", or several joined by +.
        boxes_cxcywh: (N, 4) predictions in [0, 1].
        target_boxes_cxcywh: (N, 4); rows of zeros are left out.
        delta: where the Huber loss turns from squares to absolute values, in units of the image's side.

    Returns:
        scalars, finite for any finite input, zero if no row has a box.
    """
    has_box = present(target_boxes_cxcywh)
    boxes, targets = boxes_cxcywh.float(), target_boxes_cxcywh.float()
    losses = {}
    for term in kind.split("+"):
        if term == "huber":  # divided by delta, so that it is the absolute error wherever that is large
            each = F.huber_loss(boxes, targets, delta=delta, reduction="none").mean(1) / delta
        elif term == "l1":
            each = F.l1_loss(boxes, targets, reduction="none").mean(1)
        else:
            each = _OVERLAPS[term](_with_area(boxes), _with_area(targets))
        losses[term] = masked_mean(each, has_box)
    return losses


def box_and_score_losses(
    kind: BoxLoss, outputs: dict[str, Tensor], target_boxes_cxcywh: Tensor, delta: float = 0.1
) -> dict[str, Tensor]:
    """Losses of a model that regresses a box and predicts its IoU: `box_losses`, and `score`.

    Args:
        kind, target_boxes_cxcywh, delta: see `box_losses`.
        outputs: with `boxes_cxcywh` (N, 4) and `score` (N,), both in [0, 1].
    """
    boxes = outputs["boxes_cxcywh"]
    iou = paired_iou(to_xyxy(boxes.detach()), to_xyxy(target_boxes_cxcywh))
    losses = box_losses(kind, boxes, target_boxes_cxcywh, delta)
    return losses | {"score": F.mse_loss(outputs["score"], iou)}


def heatmap_losses(logits: Tensor, target_boxes_cxcywh: Tensor) -> Tensor:
    """Focal (Lin et al. 2017) and dice loss (Milletari et al. 2016) of which cells' centres lie in the box.

    Args:
        logits: (N, G, G), of each cell.
        target_boxes_cxcywh: (N, 4); for a row of zeros no cell does.

    Returns:
        a scalar.
    """
    inside = cells_in_box(target_boxes_cxcywh, logits.shape[-1]).float()  # (N, G, G)
    logits = logits.float()
    focal = sigmoid_focal_loss(logits, inside, alpha=0.5, gamma=2.0).sum((1, 2))
    area = inside.sum((1, 2))
    shares = logits.sigmoid()
    dice = 1 - (2 * (shares * inside).sum((1, 2)) + 1) / (shares.sum((1, 2)) + area + 1)
    return (focal / area.clamp(min=4)).mean() * 4 + dice.mean()


def cells_in_box(boxes_cxcywh: Tensor, grid: int) -> Tensor:
    """bool (N, grid, grid): whether a cell's centre lies in the box; at least the one nearest to its middle.

    None for a row of zeros.
    """
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:].float() / 2
    half = half.clamp(min=0.5 / grid)  # a box smaller than a cell may hold no centre
    axis = (torch.arange(grid, device=boxes_cxcywh.device) + 0.5) / grid
    across = (axis - centre[:, :1]).abs() <= half[:, :1]  # (N, grid)
    down = (axis - centre[:, 1:]).abs() <= half[:, 1:]
    return down[:, :, None] & across[:, None] & present(boxes_cxcywh)[:, None, None]


def present(target_boxes_cxcywh: Tensor) -> Tensor:
    """bool (N,): which rows have a box, and are not the zeros of a phrase that fits nothing."""
    return target_boxes_cxcywh[:, 2] > 0


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the (N,) values where the mask is True; zero if it is nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def _with_area(boxes_cxcywh: Tensor) -> Tensor:
    """Corners of the boxes, thin ones widened: complete IoU divides by the height."""
    sides = boxes_cxcywh[:, 2:].clamp(min=MIN_SIDE)
    return to_xyxy(torch.cat([boxes_cxcywh[:, :2], sides], dim=1))
