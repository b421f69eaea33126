"""Boxes where they stand: the image encoder's maps learn what is in each place, and how far it reaches.

A caption says what an image shows and a crop's name what a box holds, but not where. So the maps learn to
detect as in FCOS (Tian et al. 2019): each cell in a box says how far its four sides are and, in place of a
class, a vector that is to be near the class's name, so that what is learned stays in the space of texts. The
layers that read the maps are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork, generalized_box_iou_loss, sigmoid_focal_loss

from experiments.photo_corpus import Photos

STRIDES = (8, 16, 32)  # pixels of a cell of levels 2 to 4
REACH = (0, 64, 128, 1e9)  # pixels: a level is for boxes whose farthest side is within its two
NEAR = 1.5  # cells: how far from a box's middle its cells may be (centre sampling)
ZOOM = (0.5, 2.0)
SEEN = 0.4  # share of a box that is still in the square; of less, nothing is said
TOWER = 192  # channels


@dataclass
class Scene:
    """What is in B images.

    Attributes:
        boxes: corners (B, K, 4) in pixels of the square.
        labels: int64 (B, K), -1 where there is no box.
        known: bool (B, C), which classes were looked for.
    """

    boxes: Tensor
    labels: Tensor
    known: Tensor


class BoxReader(nn.Module):
    """Reads maps of levels 2 to 4 into vectors and sides for each cell.

    Args:
        channels: of the three maps.
        embed_dim: D of the space of texts.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(channels), TOWER)
        self.what, self.where = tower(embed_dim), tower(4)
        self.scale, self.bias = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-6.0))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w), finest first -> unit vectors (B, P, D), corners (B, P, 4) in pixels."""
        vectors, corners = [], []
        levels = self.pyramid({str(i): x for i, x in enumerate(maps)}).values()
        for x, stride in zip(levels, STRIDES, strict=True):
            vectors.append(self.what(x).flatten(2).transpose(1, 2))
            sides = F.softplus(self.where(x).float()).flatten(2).transpose(1, 2) * 2 * stride
            centre = centres(x.shape[-1], stride, x.device)
            corners.append(torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=2))
        return F.normalize(torch.cat(vectors, 1).float(), dim=2), torch.cat(corners, 1)


def tower(channels: int) -> nn.Sequential:
    """Two convolutions and what they are read by, the same for all levels."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(TOWER, TOWER, 3, padding=1), nn.GroupNorm(16, TOWER), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(TOWER, channels, 1))


def centres(grid: int, stride: int, device: torch.device) -> Tensor:
    """(grid * grid, 2): x and y of each cell's middle in pixels, row after row."""
    axis = (torch.arange(grid, device=device) + 0.5) * stride
    return torch.stack([axis.repeat(grid), axis.repeat_interleave(grid)], dim=1)


def assign(boxes: Tensor, there: Tensor, side: int) -> Tensor:
    """Which box each cell is to say: the smallest that it may (Tian et al. 2019, sections 3.1 and 3.2).

    Args:
        boxes: corners (B, K, 4) in pixels of the square.
        there: bool (B, K), which are boxes.
        side: of the square.

    Returns:
        int64 (B, P), -1 where there is none.
    """
    found = []
    area = (boxes[..., 2:] - boxes[..., :2]).prod(2)  # (B, K)
    for stride, low, high in zip(STRIDES, REACH[:-1], REACH[1:], strict=True):
        place = centres(side // stride, stride, boxes.device)[None, :, None]  # (1, P, 1, 2)
        sides = torch.cat([place - boxes[:, None, :, :2], boxes[:, None, :, 2:] - place], 3)  # (B, P, K, 4)
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        near = ((place - middle[:, None]).abs() <= NEAR * stride).all(3)
        far = sides.amax(3)
        fits = (sides > 0).all(3) & near & (far > low) & (far <= high) & there[:, None]
        smallest, which = torch.where(fits, area[:, None], torch.inf).min(2)
        found.append(torch.where(smallest.isinf(), -1, which))
    return torch.cat(found, 1)


def box_losses(
    vectors: Tensor, corners: Tensor, reader: BoxReader, names: Tensor, scene: Scene, side: int
) -> dict[str, Tensor]:
    """Of what cells say: their class, by the name that is near, and their box.

    Args:
        vectors, corners: of `BoxReader`.
        reader: whose scale and bias make logits of similarities.
        names: unit vectors (C, D) of all classes' names.
        scene: what is in the images.
        side: of the square, in pixels.
    """
    chosen = assign(scene.boxes, scene.labels >= 0, side)  # (B, P)
    inside, index = chosen >= 0, chosen.clamp(min=0)
    label = scene.labels.gather(1, index)
    boxes = scene.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    count = inside.sum().clamp(min=1)
    classes = torch.arange(len(names), device=label.device)
    target = (inside[..., None] & (label[..., None] == classes)).float()  # (B, P, C)
    logits = reader.scale * vectors @ names.T + reader.bias
    focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0) * scene.known[:, None]
    overlap = generalized_box_iou_loss(corners, torch.where(inside[..., None], boxes, corners.detach()))
    return {"what": focal.sum() / count, "where": (overlap * inside).sum() / count}


def scenes(photos: Photos, numbers: Tensor) -> tuple[Tensor, Scene]:
    """Images (B,) at a random zoom and place, half of them mirrored: float (B, 3, S, S) in [0, 1]."""
    images, boxes, labels = (
        photos.images[numbers].float(),
        photos.all_boxes[numbers],
        photos.all_labels[numbers],
    )
    count, device, side = len(numbers), images.device, images.shape[-1]
    low, high = (torch.tensor(z).log() for z in ZOOM)
    zoom = torch.empty(count, 1, device=device).uniform_(low.item(), high.item()).exp()
    shift = (1 - zoom) * torch.rand(count, 2, device=device)  # within the square, or the square within
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = mirror / zoom[:, 0], 1 / zoom[:, 0]
    theta[:, :, 2] = (1 - 2 * shift) / zoom - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = (F.grid_sample(images - 127.0, grid, align_corners=False) + 127.0) / 255
    moved = boxes * zoom[:, None] + shift.repeat(1, 2)[:, None] * side  # (B, K, 4), not mirrored
    turned = torch.stack([side - moved[..., 2], moved[..., 1], side - moved[..., 0], moved[..., 3]], -1)
    moved = torch.where((mirror < 0)[:, None, None], turned, moved)
    cut = moved.clamp(0, side)
    area, left = ((b[..., 2:] - b[..., :2]).clamp(min=0).prod(2) for b in (moved, cut))
    labels = torch.where(left >= SEEN * area, labels, -1)
    return images, Scene(cut, labels, photos.known[numbers])
