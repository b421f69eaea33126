"""Boxes from a fused map: torchvision's region proposal network (Ren et al. 2015), run on a map a phrase.

The anchors are the same for every phrase and a phrase has exactly one true box. Matching, sampling, both
losses and the suppression of overlaps are therefore a few operations on (N, A) tensors, instead of
torchvision's loop over the N maps; the numbers are torchvision's, and a test compares them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    AnchorGenerator,
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import box_iou, clip_boxes_to_image

from vg_utils.config import ClipRPNConfig
from vg_utils.models.base import Features

ANCHOR_FRAME = 640  # pixels: the side of the image that the anchor sizes of the config are meant for

LARGEST_DELTA = math.log(1000 / 16)  # of a side, torchvision's
TABLES_AT_ONCE = 8  # lists whose boxes are compared in one go


class ProposalNetwork(nn.Module):
    """Anchors, head, matching and selection of proposals, in pixels of the model's square input.

    torchvision centres the anchors on the top-left corner of each cell and rounds them to whole pixels.

    Args:
        channels: of the fused map.
        image_size: side S of the model's square input in pixels.
        stride: of the map; it has (S / stride)² cells and A anchors together, 15 a cell by default.
        config: anchors, thresholds and counts.
    """

    def __init__(self, channels: int, image_size: int, stride: int, config: ClipRPNConfig) -> None:
        super().__init__()
        sizes = tuple(size * image_size / ANCHOR_FRAME for size in config.anchor_sizes)
        generator = AnchorGenerator((sizes,), (config.anchor_ratios,))  # one inner tuple: one feature level
        self.rpn = RegionProposalNetwork(
            generator,
            RPNHead(channels, generator.num_anchors_per_location()[0]),
            fg_iou_thresh=config.foreground_iou,
            bg_iou_thresh=config.background_iou,
            batch_size_per_image=config.sampled_anchors,
            positive_fraction=config.positive_share,
            pre_nms_top_n=dict.fromkeys(("training", "testing"), config.before_nms),
            post_nms_top_n=dict.fromkeys(("training", "testing"), config.kept),
            nms_thresh=config.nms_iou,
        )
        self.config = config
        self.shape = (image_size, image_size)
        grid = torch.zeros(1, 1, image_size // stride, image_size // stride)
        anchors = generator(ImageList(torch.zeros(1, 1, *self.shape), [self.shape]), [grid])[0]
        self.register_buffer("anchors", anchors, persistent=False)  # float32 (A, 4), corners

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Fused maps (N, C, h, w) -> objectness logits (N, A) and box deltas (N, A, 4), both float32."""
        logits, deltas = concat_box_prediction_layers(*self.rpn.head([fused]))
        count = fused.shape[0]
        return logits.float().view(count, -1), deltas.float().view(count, -1, 4)

    def best(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """The decoded anchor with the highest objectness: boxes_xyxy (N, 4) and scores (N,) in [0, 1]."""
        highest, anchor = logits.detach().max(dim=1, keepdim=True)  # (N, 1)
        return self._decode(deltas, anchor)[:, 0], highest[:, 0].sigmoid()

    def propose(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """The proposals that outlive non-maximum suppression, the best first.

        Returns:
            boxes_xyxy (N, K, 4) and scores (N, K), K the number kept, filled up with zeros. A phrase with no
            proposal left (all of zero size) gets its best decoded anchor.
        """
        ranked, order = logits.detach().topk(min(self.config.before_nms, logits.shape[1]), dim=1)  # (N, R)
        boxes = self._decode(deltas, order)  # (N, R, 4)
        shown = ((boxes[..., 2:] - boxes[..., :2]) >= self.rpn.min_size).all(2)
        kept = suppress_overlaps(boxes, shown, self.config.nms_iou)
        kept[:, 0] |= ~kept.any(1)
        front = (~kept).long().argsort(dim=1, stable=True)  # those kept come first, in their order
        front = front[:, : self.config.kept]
        filled = kept.take_along_dim(front, dim=1)  # (N, K)
        scores = ranked.take_along_dim(front, dim=1).sigmoid() * filled
        boxes = boxes.take_along_dim(front[..., None], dim=1) * filled[..., None]
        missing = self.config.kept - front.shape[1]
        return F.pad(boxes, (0, 0, 0, missing)), F.pad(scores, (0, missing))

    def _decode(self, deltas: Tensor, anchor: Tensor) -> Tensor:
        """Deltas (N, A, 4) of the chosen anchors (N, R) -> boxes_xyxy (N, R, 4), clipped to the image."""
        # Not `take_along_dim`: exported, it would be for the number of phrases that there was.
        chosen = deltas.detach().gather(1, anchor[..., None].expand(-1, -1, 4))  # (N, R, 4)
        return clip_boxes_to_image(moved(self.anchors[anchor], chosen), self.shape)

    def match(self, targets_xyxy: Tensor) -> Tensor:
        """Labels (N, A) of the anchors for true boxes (N, 4): 1 object, 0 background, -1 neither.

        The anchors nearest to a box are its objects however little they overlap, so each box has one.
        """
        iou = box_iou(targets_xyxy, self.anchors)  # (N, A)
        nearest = iou == iou.amax(dim=1, keepdim=True)
        labels = torch.where(iou < self.config.background_iou, 0.0, -1.0)
        return labels.masked_fill((iou >= self.config.foreground_iou) | nearest, 1.0)

    def sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Random object and background anchors of each phrase that the losses look at: two bool (N, A)."""
        objects = _draw(labels == 1, int(self.config.sampled_anchors * self.config.positive_share))
        return objects, _draw(labels == 0, self.config.sampled_anchors - objects.sum(dim=1, keepdim=True))

    def losses(self, logits: Tensor, deltas: Tensor, targets_xyxy: Tensor) -> Features:
        """`objectness`, cross-entropy, and `box_regression`, smooth L1 of the deltas, a sampled anchor."""
        labels = self.match(targets_xyxy)
        objects, background = self.sample(labels)
        sampled = (objects | background).sum()
        entropy = F.binary_cross_entropy_with_logits(logits, objects.float(), reduction="none")  # (N, A)
        wanted = moves(self.anchors, targets_xyxy[:, None])  # (N, A, 4)
        distance = F.smooth_l1_loss(deltas, wanted, beta=1 / 9, reduction="none").sum(dim=2)  # (N, A)
        return {
            "objectness": (entropy * (objects | background)).sum() / sampled,
            "box_regression": (distance * objects).sum() / sampled,
        }


# The two functions of torchvision's BoxCoder. That one makes constants on the CPU and hands them over, which
# no CUDA graph can record, and for which a training step waits.


def moved(anchors_xyxy: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4): centres moved in units of the anchors' sides, sides times the exponential."""
    sides = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    centres = anchors_xyxy[..., :2] + 0.5 * sides + deltas[..., :2] * sides
    half = 0.5 * sides * deltas[..., 2:].clamp(max=LARGEST_DELTA).exp()
    return torch.cat([centres - half, centres + half], dim=-1)


def moves(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Deltas (..., 4) that move the anchors to the boxes: the inverse of `moved`."""
    sides, wanted = (boxes[..., 2:] - boxes[..., :2] for boxes in (anchors_xyxy, boxes_xyxy))
    apart = boxes_xyxy[..., :2] + 0.5 * wanted - anchors_xyxy[..., :2] - 0.5 * sides
    return torch.cat([apart / sides, (wanted / sides).log()], dim=-1)


def suppress_overlaps(boxes_xyxy: Tensor, candidates: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression of many lists of boxes at once, where torchvision's takes them one by one.

    Args:
        boxes_xyxy: (N, R, 4), the best of each list first.
        candidates: bool (N, R), those that take part.
        iou: boxes that overlap a better one that stays by more are suppressed.

    Returns:
        bool (N, R), those that stay.
    """
    # Row i of each list's table: whom box i suppresses, should it stay. Some lists at once fit into caches.
    suppresses = torch.cat([_overlaps(part, iou).triu_(1) for part in boxes_xyxy.split(TABLES_AT_ONCE)])
    kept = candidates
    for rank in range(kept.shape[1] - 1):  # in turn, because what is suppressed suppresses nothing
        kept = kept > (kept[:, rank, None] & suppresses[:, rank])  # of booleans: and not
    return kept


def _overlaps(boxes_xyxy: Tensor, iou: float) -> Tensor:
    """Whether two boxes of a list (N, R, 4) have a larger IoU than that: bool (N, R, R)."""
    x1, y1, x2, y2 = boxes_xyxy.permute(2, 0, 1).contiguous()  # (N, R) each
    areas = (x2 - x1) * (y2 - y1)
    width, height = (
        torch.minimum(last[:, :, None], last[:, None]) - torch.maximum(first[:, :, None], first[:, None])
        for first, last in ((x1, x2), (y1, y2))
    )
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))  # (N, R, R)
    return shared > (areas[:, :, None] + areas[:, None] - shared).mul_(iou)


def _draw(candidates: Tensor, count: int | Tensor) -> Tensor:
    """Up to `count` (a number, or one a row) of the True places of each row, at random: bool (N, A)."""
    noise = torch.rand(candidates.shape, device=candidates.device).masked_fill(~candidates, 2.0)
    return candidates & (noise.argsort(dim=1).argsort(dim=1) < count)
