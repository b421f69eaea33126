"""`clip-hrnet`, of the CLIP + HRNet project: a vector each for image and phrase, an HRNet map, a box.

The CLIP vectors say *what*, spread over the grid of the HRNet map that says *where*; convolutions shrink the
three to one vector and a feed-forward head turns it into centre and size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vg_utils.config import ModelConfig
from vg_utils.models.backbones import build_backbone
from vg_utils.models.base import Features, GroundingModel, per_expression
from vg_utils.models.graphs import side_by_side
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.models.losses import box_and_score_losses, box_loss_weights


class ClipHRNet(GroundingModel):
    """CLIP + HRNet box regression.

    Shapes with the default configuration (RN50 and HRNet-W18 at 224): vectors of 1024, a 512x14x14 map,
    128 + 128 + 64 channels of 14x14 concatenated, 256x1x1 after the convolutions.
    """

    parts = ("hrnet", "clip_hrnet")
    smallest_batch = 2

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.clip_hrnet
        self.box_loss, self.huber_delta = head.box_loss, head.huber_delta
        self.loss_weights = box_loss_weights(head.box_loss, head.box_weight) | {"score": head.score_weight}
        self.clip = build_backbone(config.clip, config.image_size)
        self.hrnet = HRNetBackbone(config.hrnet, config.image_size)
        self.grid = config.image_size // self.hrnet.stride  # side G of the HRNet map
        self.project_image = _project(self.clip.embed_dim, head.clip_channels)
        self.project_text = _project(self.clip.embed_dim, head.clip_channels)
        self.project_map = _project(self.hrnet.channels, head.hrnet_channels)
        self.reduce = _reduce_to_vector(
            2 * head.clip_channels + head.hrnet_channels, head.fused_channels, self.grid, head.dropout
        )
        self.box_head = feed_forward(head.fused_channels, head.hidden, 4, head.dropout)
        self.score_head = feed_forward(head.fused_channels, head.hidden, 1, head.dropout)

    def backbones(self) -> dict[str, nn.Module]:
        return {"clip": self.clip, "hrnet": self.hrnet}

    def encode_images(self, images: Tensor) -> Features:
        vector, level = side_by_side(lambda: self.clip.encode_images(images), lambda: self.hrnet(images))
        return {"vector": vector, "map": level}

    def prepare_images(self, image_features: Features) -> Features:
        """Project vector and map of each image: (B, 128, 1, 1) and (B, 64, G, G)."""
        if "image" in image_features:
            return image_features
        return {
            "image": self.project_image(image_features["vector"][:, :, None, None]),
            "fine": self.project_map(image_features["map"]),
        }

    def encode_texts(self, tokens: Tensor) -> Features:
        return {"vector": self.clip.encode_texts(tokens).pooled}

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        # Project. A 1x1 convolution of a vector spread over a grid is the convolution of the vector, spread:
        # the same numbers for 1/196 of the work. What depends on the image alone is computed once for it.
        images = self.prepare_images(image_features)
        text = self.project_text(text_features["vector"][:, :, None, None])  # (N, 128, 1, 1)

        # Fuse: the vectors spread over the grid, beside the map
        grid = (-1, -1, self.grid, self.grid)
        fused = torch.cat(
            [
                per_expression(images["image"], image_index).expand(grid),
                text.expand(grid),
                per_expression(images["fine"], image_index),
            ],
            dim=1,
        )  # (N, 320, G, G)

        # Shrink to one vector, and read the box off it
        vector = self.reduce(fused).flatten(1)  # (N, 256)
        return {
            "boxes_cxcywh": self.box_head(vector).float().sigmoid(),  # (N, 4)
            # The project has no score. Detached, so that learning one leaves the box regression as it was.
            "score": self.score_head(vector.detach()).float().sigmoid().squeeze(1),  # (N,)
        }

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        return box_and_score_losses(self.box_loss, outputs, target_boxes_cxcywh, self.huber_delta)


def _project(channels_in: int, channels_out: int) -> nn.Sequential:
    """1x1 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _reduce_to_vector(channels_in: int, channels: int, grid: int, dropout: float) -> nn.Sequential:
    """Two stride-2 convolutions, then one that covers what is left: (N, C, G, G) -> (N, channels, 1, 1).

    No pooling: a box regressor has to keep *where* things are until the last step.
    """
    rest = (grid + 3) // 4  # what two halvings, rounded up, leave: 14 -> 7 -> 4
    layers: list[nn.Module] = []
    for size_in, kernel, stride, padding in (
        (channels_in, 3, 2, 1),
        (channels, 3, 2, 1),
        (channels, rest, 1, 0),
    ):
        layers += [
            nn.Conv2d(size_in, channels, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Dropout(dropout))


def feed_forward(size_in: int, hidden: int, size_out: int, dropout: float) -> nn.Sequential:
    """Two layers: (N, size_in) -> (N, size_out)."""
    return nn.Sequential(
        nn.Linear(size_in, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, size_out)
    )
