"""`dense-grounder`, the flagship: a phrase is read into a dense map, and every cell says where the box is.

An image's map is encoded once. For each phrase a few conditioned blocks work on a copy of its cells: the
phrase scales and shifts the channels of a convolution (FiLM, Perez et al. 2018), which finds what it names;
then cells attend to each other and to the words, which settles relations and order. Every cell says whether
it lies in the box and how far the four sides are (as in FCOS, Tian et al. 2019), and the box is the mean of
what the cells say, weighted by how sure they are to lie in it. That map is the heatmap shown to people.
Where the settings want it, the box is then mended on a finer map, see `vg_utils.models.refinement`.

The same layers read every block's map, and each reading is trained (deep supervision, Lee et al. 2015, as of
DETR's decoder layers, Carion et al. 2020, section 3.2), as is the box that each cell of the object says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.boxes import paired_iou, to_cxcywh, to_xyxy
from vg_utils.config import DenseGrounderConfig, ModelConfig
from vg_utils.models.attention import Attention, LayerNorm, check_heads
from vg_utils.models.base import Features, per_expression
from vg_utils.models.losses import (
    box_loss_weights,
    box_losses,
    cells_in_box,
    heatmap_losses,
    masked_mean,
    present,
)
from vg_utils.models.pyramid import PyramidModel
from vg_utils.models.refinement import FineMap, Refinement, refined_losses

FREQUENCIES = 4  # of the sines that tell a cell its place


class DenseGrounder(PyramidModel):
    """Text-conditioned dense regression.

    Shapes with the default configuration (RN50 and HRNet-W18 at 224): a merged map of 256x14x14 an image,
    text vectors of 1024 and up to 77 tokens of 512; 196 conditioned cells of 256 a phrase.

    Attributes:
        temperatures: (2,), by which the logits of score and presence are divided; `calibrate` fits them.
    """

    learns_presence = True
    ranks_boxes = True
    parts = ("hrnet", "pyramid", "dense_grounder")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        head = config.dense_grounder
        check_heads(config.pyramid.channels, head.heads)
        self.box_loss = head.box_loss
        of_cells = box_loss_weights(head.box_loss, head.cell_weight)
        self.loss_weights = box_loss_weights(head.box_loss, head.box_weight) | {
            **{f"cell_{name}": weight for name, weight in of_cells.items()},
            "heatmap": head.heatmap_weight,
            "score": head.score_weight,
            "presence": head.presence_weight,
        }
        self.reads_words, self.agreement = head.words, head.agreement
        channels, grid = self.pyramid.channels, self.pyramid.grid
        self.register_buffer("places", place_encoding(grid), persistent=False)  # (P, G, G)
        self.register_buffer("centres", cell_centres(grid), persistent=False)  # (G * G, 2)
        self.place = nn.Conv2d(len(self.places), channels, 1) if head.coordinates else None
        self.project_text = nn.Linear(self.clip.embed_dim, channels)
        self.project_words = nn.Linear(self.clip.text_width, channels) if head.words else None
        self.mix_words = _encoder_layer(channels, head) if head.words else None
        self.blocks = nn.ModuleList(ConditionedBlock(channels, grid, head) for _ in range(head.blocks))
        self.norm = LayerNorm(channels)
        self.cell = nn.Sequential(  # of each cell: in the box or not, and the distances to its four sides
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 5)
        )
        nn.init.constant_(self.cell[-1].bias[1:], -1.5)  # softplus of it: boxes of 0.4 at first
        self.judge = nn.Sequential(  # of the whole: score and presence
            nn.Linear(3 * channels + 1, channels), nn.ReLU(), nn.Dropout(head.dropout), nn.Linear(channels, 2)
        )
        self.register_buffer("temperatures", torch.ones(2))
        self.fine_map = self.refinement = None
        if head.refinements:
            self.fine_map = FineMap(self.pyramid.finest_channels, channels)
            self.refinement = Refinement(channels, head.refinements, head.dropout)
            of_refined = box_loss_weights(head.box_loss, head.refined_weight)
            self.loss_weights |= {f"refined_{name}": weight for name, weight in of_refined.items()}

    def prepare_images(self, image_features: Features) -> Features:
        """Merge the levels, tell the P = G * G cells their places, begin the first block: (B, P, C) each.

        Where boxes are mended, also the `fine` map for it, see `FineMap`.
        """
        if "cells" in image_features:
            return image_features
        maps = self.pyramid(image_features)  # (B, C, G, G)
        fine = {}
        if self.fine_map is not None:
            fine["fine"] = self.fine_map(image_features[self.pyramid.finest], maps)
        if self.place is not None:
            maps = maps + self.place(self.places)
        cells = maps.flatten(2).transpose(1, 2)
        return {"cells": cells, "prepared": self.blocks[0].prepare(cells)} | fine

    def encode_texts(self, tokens: Tensor) -> Features:
        text = self.clip.encode_texts(tokens)
        pooled = {"pooled": F.normalize(text.pooled.float(), dim=1)}
        return pooled | (text.words() if self.reads_words else {})

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        """Condition and read off.

        Returns:
            `boxes_cxcywh` (N, 4); `score` (N,), predicted IoU; `presence` (N,), probability that the phrase
            fits anything in the image; `heatmap` (N, G, G), probability of each cell to lie in the box.
            For the losses also `score_logit` and `presence_logit`, before temperature, and of each of the K
            blocks `heatmap_logits` (N, K, G, G) and what each cell says, `cells_cxcywh` (N, K, P, 4); and
            what `Refinement` gives, where boxes are mended.
        """
        # Once an image
        images = self.prepare_images(image_features)
        cells, prepared = (per_expression(images[x], image_index) for x in ("cells", "prepared"))  # (N, P, C)

        # Once a phrase: read it into the cells, block by block, and let every block's cells answer
        pooled, words, padding = self._read_phrase(text_features)
        steps = []
        for number, block in enumerate(self.blocks):
            prepared = block.prepare(cells) if number else prepared
            cells = block(cells, prepared, pooled, words, padding)
            seen = self.norm(cells)
            steps.append(self.cell(seen))  # (N, P, 5)

        # What each cell says: whether it is in the box, and the box that it sees
        steps = torch.stack(steps, dim=1).float()  # (N, K, P, 5)
        logits, sides = steps[..., 0], F.softplus(steps[..., 1:])
        corners = torch.cat([self.centres - sides[..., :2], self.centres + sides[..., 2:]], dim=3)

        # The box: the mean of the last block's cells, weighted by how sure each is to lie inside
        weights = logits[:, -1].softmax(dim=1)  # (N, P)
        if self.agreement and not self.training:  # of two things that may be meant, not what lies between
            weights = agreeing(corners[:, -1], weights, self.agreement)
        boxes = to_cxcywh((corners[:, -1] * weights[..., None]).sum(1))  # (N, 4)

        # A closer look, which mends it
        refined = {}
        if self.refinement is not None:
            refined = self.refinement(images["fine"], seen, image_index, boxes)

        # The verdict on all of it: how well does the box fit, and does the phrase fit anything
        found = (weights[:, None].to(seen.dtype) @ seen)[:, 0]  # (N, C): what is where the box is
        summary = [found.float(), seen.amax(1).float(), pooled.float(), logits[:, -1].amax(1, keepdim=True)]
        verdict = self.judge(torch.cat(summary, dim=1)).float()  # (N, 2)
        if refined:
            verdict = verdict + F.pad(refined["quality_logit"][:, None], (0, 1))
        score, presence = (verdict / self.temperatures).sigmoid().unbind(1)

        heatmap_logits = logits.unflatten(2, self.places.shape[1:])
        return {
            "boxes_cxcywh": boxes,
            "score": score,
            "presence": presence,
            "heatmap": heatmap_logits[:, -1].sigmoid(),
            "score_logit": verdict[:, 0],
            "presence_logit": verdict[:, 1],
            "heatmap_logits": heatmap_logits,
            "cells_cxcywh": to_cxcywh(corners),
            **refined,
        }

    def _read_phrase(self, text_features: Features) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features of text -> the phrase (N, C), its words (N, L, C), and which are padding (N, L)."""
        pooled = self.project_text(text_features["pooled"])
        if not self.reads_words:
            return pooled, pooled[:, None], None  # the one word that there is
        words, padding = self.project_words(text_features["tokens"]), text_features["mask"] < 0.5
        # A word of CLIP's knows only those before it. Here the words and the phrase see each other.
        sentence = torch.cat([pooled[:, None], words], dim=1)  # (N, 1 + L, C)
        sentence = self.mix_words(sentence, src_key_padding_mask=F.pad(padding, (1, 0)))
        return sentence[:, 0], sentence[:, 1:], padding

    def candidates(self, outputs: Features) -> tuple[Tensor, Tensor]:
        """Boxes of the last block's cells; a score is the answer's times the cell's share of the surest."""
        sure = outputs["heatmap"].flatten(1)  # (N, P)
        share = sure / sure.amax(1, keepdim=True).clamp(min=torch.finfo(sure.dtype).tiny)
        return outputs["cells_cxcywh"][:, -1], outputs["score"][:, None] * share

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        """Of rows of zeros, phrases that fit nothing, only presence and an empty heatmap are learned."""
        boxes, there = outputs["boxes_cxcywh"], present(target_boxes_cxcywh)
        iou = paired_iou(to_xyxy(boxes.detach()), to_xyxy(target_boxes_cxcywh)).clamp(0, 1)
        score = F.binary_cross_entropy_with_logits(outputs["score_logit"], iou, reduction="none")
        logits, cells = outputs["heatmap_logits"], outputs["cells_cxcywh"]
        of_steps = target_boxes_cxcywh[:, None].expand(-1, logits.shape[1], -1)  # (N, K, 4)
        inside = cells_in_box(target_boxes_cxcywh, logits.shape[-1]).flatten(1)  # (N, P)
        of_cells = (of_steps[:, :, None] * inside[:, None, :, None]).flatten(0, 2)  # outside: zeros, no box
        cell_losses = box_losses(self.box_loss, cells.flatten(0, 2), of_cells)
        refined = {}
        if self.refinement is not None:  # which changes nothing about what the cells are to learn
            boxes = outputs["first_cxcywh"]
            refined = refined_losses(self.box_loss, outputs, target_boxes_cxcywh)
        return {
            **box_losses(self.box_loss, boxes, target_boxes_cxcywh),
            **{f"cell_{name}": loss for name, loss in cell_losses.items()},
            "heatmap": heatmap_losses(logits.flatten(0, 1), of_steps.flatten(0, 1)),
            "score": masked_mean(score, there),
            "presence": F.binary_cross_entropy_with_logits(outputs["presence_logit"], there.float()),
            **refined,
        }


class ConditionedBlock(nn.Module):
    """One step of reading the phrase into the cells: choose words, look nearby, look everywhere.

    Args:
        channels: C of the cells and of the projected text.
        grid: side G of the map; there are P = G * G cells.
        head: the settings.
    """

    def __init__(self, channels: int, grid: int, head: DenseGrounderConfig) -> None:
        super().__init__()
        self.grid = grid
        self.ask = nn.Linear(2 * channels, channels)
        self.read = Attention(channels, head.heads)
        self.film = nn.Linear(channels, 2 * channels)
        self.norm_in, self.norm_film = LayerNorm(channels), LayerNorm(channels, elementwise_affine=False)
        self.mix = nn.Linear(channels, channels)
        self.look_nearby = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_attention, self.norm_feed_forward = LayerNorm(channels), LayerNorm(channels)
        self.attention = Attention(channels, head.heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, head.feed_forward),
            nn.ReLU(),
            nn.Dropout(head.dropout),
            nn.Linear(head.feed_forward, channels),
        )
        self.dropout = nn.Dropout(head.dropout)

    def prepare(self, cells: Tensor) -> Tensor:
        """Cells (N, P, C), of phrases or of images -> what a phrase will scale and shift (N, P, C)."""
        return self.norm_film(self.mix(self.norm_in(cells)))

    def forward(
        self, cells: Tensor, prepared: Tensor, pooled: Tensor, words: Tensor, padding: Tensor | None
    ) -> Tensor:
        """One phrase a row.

        Args:
            cells: (N, P, C).
            prepared: (N, P, C), what `prepare` made of them.
            pooled: (N, C), the phrase.
            words: (N, L, C).
            padding: (N, L), True where there is no word; None if there is one everywhere.

        Returns:
            cells (N, P, C).
        """
        # Choose words. Which matter in this step depends on the phrase and on what the cells hold by now.
        question = self.ask(torch.cat([pooled, cells.mean(1)], dim=1))[:, None]  # (N, 1, C)
        answer = self.read(question, words, padding)[:, 0]

        # Look nearby: the phrase scales and shifts what a convolution sees
        scale, shift = self.film(answer + pooled)[:, None].chunk(2, dim=2)  # (N, 1, C) each
        y = F.relu(torch.addcmul(shift, prepared, 1 + scale))
        y = self.look_nearby(y.transpose(1, 2).unflatten(2, (self.grid, self.grid)))  # (N, C, G, G)
        cells = cells + y.flatten(2).transpose(1, 2)

        # Look everywhere: cells attend to each other and to the words
        queries = self.norm_attention(cells)
        keys = torch.cat([queries, words], dim=1)  # (N, P + L, C)
        if padding is not None:
            padding = torch.cat([padding.new_zeros(cells.shape[:2]), padding], dim=1)
        cells = cells + self.dropout(self.attention(queries, keys, padding))
        return cells + self.dropout(self.feed_forward(self.norm_feed_forward(cells)))


def _encoder_layer(channels: int, head: DenseGrounderConfig) -> nn.Module:
    return nn.TransformerEncoderLayer(
        channels, head.heads, head.feed_forward, head.dropout, batch_first=True, norm_first=True
    )


def agreeing(boxes_xyxy: Tensor, weights: Tensor, least_iou: float) -> Tensor:
    """Weights (N, P) of cells, 0 where a box (N, P, 4) overlaps that of the heaviest by less."""
    # Not `take_along_dim`: exported, it would be for the number of phrases that there was.
    surest = boxes_xyxy.gather(1, weights.argmax(1)[:, None, None].expand(-1, -1, 4))[:, 0]  # (N, 4)
    iou = paired_iou(boxes_xyxy.flatten(0, 1), surest.repeat_interleave(weights.shape[1], 0))  # (N * P,)
    weights = weights * (iou.view_as(weights) >= least_iou)
    return weights / weights.sum(1, keepdim=True)


def cell_centres(grid: int) -> Tensor:
    """(grid * grid, 2): x and y of each cell's centre in [0, 1], row after row."""
    axis = (torch.arange(grid) + 0.5) / grid
    return torch.stack([axis.repeat(grid), axis.repeat_interleave(grid)], dim=1)


def place_encoding(grid: int) -> Tensor:
    """(2 + 4 * FREQUENCIES, grid, grid): x and y of each cell in [-1, 1], and sines and cosines of them."""
    x, y = (cell_centres(grid) * 2 - 1).T.reshape(2, grid, grid)
    turns = [math.pi * 2**k for k in range(FREQUENCIES)]
    waves = [wave(turn * axis) for turn in turns for axis in (x, y) for wave in (torch.sin, torch.cos)]
    return torch.stack([x, y, *waves])
