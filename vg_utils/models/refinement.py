"""A closer look at a box, with which `dense-grounder` may mend it before it answers.

A cell of its map stands for 16 pixels, and its box is the mean of what cells say: the right thing is found,
but its edges are blurred. Here the features in and around that box are read from a finer map of the image and
from the cells that have read the phrase (RoIAlign, He et al. 2017), and say how the box moves (Ren et al.
2015). A further look begins where the last one ended (as in Cascade R-CNN, Cai & Vasconcelos 2018, but the
weights are shared).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import BoxLoss
from vg_utils.models.attention import GroupNorm
from vg_utils.models.base import Features
from vg_utils.models.losses import box_losses
from vg_utils.models.pyramid import ResidualBlock

CHANNELS, HIDDEN = 64, 128  # of the fine map, and of what is made of a look
POINTS = 7  # a side of the grid that is read of a box, each the mean of 2 x 2 samples
AROUND = 1.3  # the grid's side over the box's: an edge that was missed lies outside
LARGEST_CHANGE = math.log(4)  # of a side, in one look

JITTERED = 3  # more starts a phrase in training: boxes of train are learned by heart and need no mending
SHIFT, STRETCH = 0.4, 0.6  # most that they are moved, in sides, and stretched, in logarithms: IoU 0.3 to 1
LEAST_IOU = 0.3  # of a start with the target; what shows less of it is not to be mended into it


class FineMap(nn.Module):
    """The finest level of an image, which knows edges, and the merged map, which knows things.

    Args:
        level: channels of the finest level.
        merged: channels of the merged map.
    """

    def __init__(self, level: int, merged: int) -> None:
        super().__init__()
        self.level = nn.Sequential(GroupNorm(1, level), nn.Conv2d(level, CHANNELS, 1))
        self.merged = nn.Conv2d(merged, CHANNELS, 1)
        self.block = ResidualBlock(CHANNELS)

    def forward(self, level: Tensor, merged: Tensor) -> Tensor:
        """(B, C, g, g) and (B, D, G, G) -> (B, CHANNELS, g, g), once an image."""
        fine = self.level(level)
        size = fine.shape[-2:]
        coarse = F.interpolate(self.merged(merged), size=size, mode="bilinear", align_corners=False)
        return self.block(fine + coarse.to(fine.dtype))


class Refinement(nn.Module):
    """Looks at a box and moves it; at first, before any training, nowhere.

    Args:
        channels: C of the conditioned cells.
        looks: how many, one after the other; at least 1.
        dropout: of what is made of a look.
    """

    def __init__(self, channels: int, looks: int, dropout: float) -> None:
        super().__init__()
        self.looks = looks
        self.project_cells = nn.Linear(channels, CHANNELS)
        self.look = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(CHANNELS * POINTS**2, HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.move = nn.Linear(HIDDEN, 5)  # of the centre, of the sides, and how well the new box will fit
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def forward(self, fine: Tensor, cells: Tensor, image_index: Tensor, boxes_cxcywh: Tensor) -> Features:
        """Mend a box a phrase; in training also `JITTERED` copies that are moved by chance.

        Args:
            fine: (B, CHANNELS, g, g), of images.
            cells: (N, P, C), that have read the phrases; P = G * G.
            image_index: (N,), the image of each phrase.
            boxes_cxcywh: (N, 4); no gradient goes through them.

        Returns:
            `boxes_cxcywh` (N, 4), mended, and `quality_logit` (N,), which adds to that of their score. For
            the losses `first_cxcywh` (N, 4), as they came, and of K looks and S starts, the first of them
            without jitter, `starts_cxcywh` and `refined_cxcywh` (N, K, S, 4). All float32.
        """
        grid = math.isqrt(cells.shape[1])
        read = self.project_cells(cells).transpose(1, 2).unflatten(2, (grid, grid))  # (N, CHANNELS, G, G)
        phrase_index = torch.arange(image_index.shape[0], device=image_index.device)
        boxes = boxes_cxcywh.detach()[:, None]  # (N, 1, 4)
        if self.training:
            boxes = torch.cat([boxes, jittered(boxes.expand(-1, JITTERED, -1))], dim=1)  # (N, S, 4)
        starts, refined = [], []
        for _ in range(self.looks):
            starts.append(boxes)
            seen = around(fine, boxes, image_index) + around(read, boxes, phrase_index)
            moves, quality = self.move(self.look(seen)).float().unflatten(0, boxes.shape[:2]).split((4, 1), 2)
            refined.append(moved(boxes, moves))
            boxes = refined[-1].detach()
        return {
            "boxes_cxcywh": refined[-1][:, 0],
            "quality_logit": quality[:, 0, 0],
            "first_cxcywh": boxes_cxcywh,
            "starts_cxcywh": torch.stack(starts, dim=1),
            "refined_cxcywh": torch.stack(refined, dim=1),
        }


def refined_losses(kind: BoxLoss, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
    """`box_losses` of every refined box whose start overlaps the target, names beginning with "refined_"."""
    starts, refined = (outputs[name].flatten(0, 2) for name in ("starts_cxcywh", "refined_cxcywh"))
    targets = target_boxes_cxcywh[:, None, None].expand_as(outputs["starts_cxcywh"]).flatten(0, 2)
    overlaps = paired_iou(to_xyxy(starts), to_xyxy(targets)) >= LEAST_IOU
    losses = box_losses(kind, refined, targets * overlaps[:, None])  # a row of zeros is no box
    return {f"refined_{name}": loss for name, loss in losses.items()}


def around(maps: Tensor, boxes_cxcywh: Tensor, map_index: Tensor) -> Tensor:
    """What lies in and around boxes: float32 (N * S, C, POINTS, POINTS).

    Args:
        maps: (M, C, G, G), of the whole square.
        boxes_cxcywh: (N, S, 4) in [0, 1]; beyond the map's edge it goes on as at the edge, then with zeros.
        map_index: (N,), the map of each row of boxes.
    """
    centre, sides = boxes_cxcywh.split(2, dim=2)
    corners = to_xyxy(torch.cat([centre, sides * AROUND], dim=2)) * maps.shape[-1]  # in cells
    index = map_index[:, None, None].expand(-1, boxes_cxcywh.shape[1], 1)
    rois = torch.cat([index.to(corners.dtype), corners], dim=2).flatten(0, 1)  # (N * S, 5)
    return roi_align(maps.float(), rois, POINTS, sampling_ratio=2, aligned=True)


def moved(boxes_cxcywh: Tensor, moves: Tensor) -> Tensor:
    """Boxes (..., 4) moved by (..., 4): centres by shares of the sides, sides by logarithms of factors."""
    centre, sides = boxes_cxcywh.split(2, dim=-1)
    by, stretch = moves.split(2, dim=-1)
    factor = stretch.clamp(-LARGEST_CHANGE, LARGEST_CHANGE).exp()
    return torch.cat([centre + by * sides, sides * factor], dim=-1)


def jittered(boxes_cxcywh: Tensor) -> Tensor:
    """Boxes (N, S, 4) moved by chance, of any strength up to the most."""
    strength = torch.rand_like(boxes_cxcywh[..., :1])
    chance = (2 * torch.rand_like(boxes_cxcywh) - 1) * strength
    return moved(boxes_cxcywh, chance * chance.new_tensor([SHIFT, SHIFT, STRETCH, STRETCH]))
