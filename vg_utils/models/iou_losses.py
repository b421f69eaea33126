"""Losses of how two boxes overlap: torchvision's functions, values and gradients, without its masks.

torchvision computes the intersection of those rows alone that overlap, which it has to count first: on a GPU
the CPU waits for that number at each call, and `torch.compile` breaks the graph there. Here every row is
computed, and what does not overlap comes out as zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-7  # torchvision's


def generalized_iou_loss(boxes_xyxy: Tensor, targets_xyxy: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al. 2019) of row i with row i: (N, 4) twice -> (N,) in [0, 2]."""
    shared, union = _shared_and_union(boxes_xyxy, targets_xyxy)
    hull = _area(_hull(boxes_xyxy, targets_xyxy))
    return 1 - shared / (union + EPS) + (hull - union) / (hull + EPS)


def distance_iou_loss(boxes_xyxy: Tensor, targets_xyxy: Tensor) -> Tensor:
    """1 - distance IoU (Zheng et al. 2020, section 3.1): (N, 4) twice -> (N,) in [0, 2]."""
    shared, union = _shared_and_union(boxes_xyxy, targets_xyxy)
    return 1 - shared / (union + EPS) + _distance(boxes_xyxy, targets_xyxy)


def complete_iou_loss(boxes_xyxy: Tensor, targets_xyxy: Tensor) -> Tensor:
    """1 - complete IoU (Zheng et al. 2020, section 3.2): (N, 4) twice, of some height -> (N,)."""
    shared, union = _shared_and_union(boxes_xyxy, targets_xyxy)
    iou = shared / (union + EPS)
    sides, wanted = (boxes[:, 2:] - boxes[:, :2] for boxes in (boxes_xyxy, targets_xyxy))
    angles = torch.atan(wanted[:, 0] / wanted[:, 1]) - torch.atan(sides[:, 0] / sides[:, 1])
    shape = 4 / math.pi**2 * angles**2
    weight = (shape / (1 - iou + shape + EPS)).detach()
    return 1 - iou + _distance(boxes_xyxy, targets_xyxy) + weight * shape


def _shared_and_union(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (N,) of the intersection and of the union."""
    sides = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    shared = _area(F.relu(sides))  # unlike a clamp, flat where boxes touch
    return shared, _area(one[:, 2:] - one[:, :2]) + _area(other[:, 2:] - other[:, :2]) - shared


def _hull(one: Tensor, other: Tensor) -> Tensor:
    """Sides (N, 2) of the smallest box around both."""
    return torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull, (N,)."""
    between = (one[:, :2] + one[:, 2:] - other[:, :2] - other[:, 2:]) / 2
    return between.square().sum(1) / (_hull(one, other).square().sum(1) + EPS)


def _area(sides: Tensor) -> Tensor:
    return sides[:, 0] * sides[:, 1]  # the gradient of `prod` is dear
