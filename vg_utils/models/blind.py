"""Baselines that do not look: a constant box, and a box read off the phrase alone.

A grounding score means nothing beside zero; it means something beside these. On RefCOCOg's test split
the best constant box overlaps a quarter of the image with every answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vg_utils.boxes import paired_iou
from vg_utils.config import ModelConfig
from vg_utils.data.examples import GroundingExample
from vg_utils.models.backbones import build_backbone
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.clip_hrnet import feed_forward
from vg_utils.models.losses import box_loss_weights, box_losses


def fit_constant_box(
    examples: Sequence[GroundingExample], step: float = 0.005
) -> tuple[float, float, float, float]:
    """The one box with the highest mean IoU over all expressions, in shares (x1, y1, x2, y2) of each image.

    Coordinate ascent from the median box, with steps that shrink to `step` of the image's side.
    """
    sides = [e.size_wh * 2 for e in examples for _ in e.expressions]
    boxes = torch.tensor([x.box_xyxy for e in examples for x in e.expressions]) / torch.tensor(
        sides
    )  # (N, 4)
    best = boxes.median(dim=0).values
    best_iou = paired_iou(best.expand_as(boxes), boxes).mean()
    move = 0.16
    while move >= step:
        candidates = best + move * torch.cat([torch.eye(4), -torch.eye(4)])  # (8, 4)
        candidates = candidates.clamp(0, 1)
        ious = torch.stack([paired_iou(c.expand_as(boxes), boxes).mean() for c in candidates])
        if ious.max() > best_iou:
            best, best_iou = candidates[ious.argmax()], ious.max()
        else:
            move /= 2
    return tuple(best.tolist())


class TextOnly(GroundingModel):
    """A box from CLIP's text vector through a feed-forward head: what the language gives away."""

    parts = ("clip_hrnet",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.clip_hrnet
        self.box_loss, self.huber_delta = head.box_loss, head.huber_delta
        self.loss_weights = box_loss_weights(head.box_loss, head.box_weight)
        self.clip = build_backbone(config.clip, config.image_size)
        self.head = feed_forward(self.clip.embed_dim, head.hidden, 4, head.dropout)
        self.clip.freeze_unread(levels=(), pooled_images=False, pooled_texts=True)

    def backbones(self) -> dict[str, nn.Module]:
        return {"clip": self.clip}

    def encode_images(self, images: Tensor) -> Features:
        return {"nothing": images.new_zeros((len(images), 1), dtype=torch.float32)}

    def encode_texts(self, tokens: Tensor) -> Features:
        return {"vector": self.clip.encode_texts(tokens).pooled}

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        boxes = self.head(text_features["vector"]).float().sigmoid()  # (N, 4)
        return {"boxes_cxcywh": boxes, "score": torch.full_like(boxes[:, 0], 0.5)}

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        return box_losses(self.box_loss, outputs["boxes_cxcywh"], target_boxes_cxcywh, self.huber_delta)
