"""`transvg`, as published: all image and text tokens and a [REG] token through a transformer.

TransVG (Deng et al. 2021, section 3.2) with CLIP's features, as in CLIP-VG (Xiao et al. 2023), on the map of
`dense-grounder`. Nothing but the backbone is shared between the phrases of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vg_utils.config import ModelConfig
from vg_utils.models.attention import check_heads
from vg_utils.models.base import Features, per_expression
from vg_utils.models.losses import box_and_score_losses, box_loss_weights
from vg_utils.models.pyramid import PyramidModel

MAX_WORDS = 77  # CLIP's


class TransVG(PyramidModel):
    """Transformer fusion.

    Shapes with the default configuration (RN50 and HRNet-W18 at 224): 196 image tokens of 256, up to 77 text
    tokens of 256 and [REG].
    """

    parts = ("hrnet", "pyramid", "transvg")
    reads_pooled = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        head = config.transvg
        self.box_loss = head.box_loss
        self.loss_weights = box_loss_weights(head.box_loss, head.box_weight) | {"score": head.score_weight}
        size, channels = self.pyramid.channels, head.channels
        self.project_image = nn.Conv2d(size, channels, 1)
        self.project_words = nn.Linear(self.clip.text_width, channels)
        self.reg = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + MAX_WORDS + self.pyramid.grid**2, channels) * 0.02)
        check_heads(channels, head.heads)
        layer = nn.TransformerEncoderLayer(
            channels, head.heads, head.feed_forward, head.dropout, batch_first=True, norm_first=True
        )
        layer.self_attn.dropout = 0.0  # inside attention it would keep it from the fused kernels
        self.encoder = nn.TransformerEncoder(
            layer, head.layers, nn.LayerNorm(channels), enable_nested_tensor=False
        )
        self.box_head = _three_layers(channels, 4)
        self.score_head = _three_layers(channels, 1)

    def prepare_images(self, image_features: Features) -> Features:
        """The map's cells as tokens, (B, G * G, C)."""
        if "cells" in image_features:
            return image_features
        maps = self.project_image(self.pyramid(image_features))  # (B, C, G, G)
        return {"cells": maps.flatten(2).transpose(1, 2)}

    def encode_texts(self, tokens: Tensor) -> Features:
        return self.clip.encode_texts(tokens).words()

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        # Tokens of one width: cells of the map, and words
        images = self.prepare_images(image_features)
        cells = per_expression(images["cells"], image_index)  # (N, G * G, C)
        words = self.project_words(text_features["tokens"])  # (N, L, C)

        # One sequence a phrase: [REG], words, cells, each with its place
        count, length = words.shape[:2]
        place_reg, place_words, place_cells = self.positions.split([1, MAX_WORDS, cells.shape[1]], dim=1)
        reg = (self.reg + place_reg).expand(count, -1, -1)  # (N, 1, C)
        tokens = torch.cat([reg, words + place_words[:, :length], cells + place_cells], dim=1)
        tokens = tokens.to(words.dtype)  # under autocast half of what the parameters made them

        # The transformer, blind to padding; the box is read off [REG]
        seen = torch.ones((count, 1), device=words.device)
        mask = torch.cat([seen, text_features["mask"].float(), seen.expand(-1, cells.shape[1])], dim=1)
        vector = self.encoder(tokens, src_key_padding_mask=mask < 0.5)[:, 0]  # (N, C), of [REG]
        return {
            "boxes_cxcywh": self.box_head(vector).float().sigmoid(),  # (N, 4)
            "score": self.score_head(vector.detach()).float().sigmoid().squeeze(1),  # (N,)
        }

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        return box_and_score_losses(self.box_loss, outputs, target_boxes_cxcywh)


def _three_layers(channels: int, size_out: int) -> nn.Sequential:
    hidden = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(channels, size_out))
