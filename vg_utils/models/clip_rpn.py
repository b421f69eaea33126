"""`clip-rpn-concat` and `clip-rpn-attention`, of the ClipRPN project: text fused into CLIP's map, proposals.

CLIP's last feature map is computed once for each image. For each phrase its text is fused into that map, by
concatenation or by attention, and a region proposal network finds boxes on the result: the proposal with the
highest objectness is the answer, its objectness the score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.boxes import to_cxcywh, to_xyxy
from vg_utils.config import ClipRPNConfig, ConfigError, ModelConfig
from vg_utils.models.attention import GroupNorm
from vg_utils.models.backbones import Backbone, build_backbone
from vg_utils.models.base import Features, GroundingModel, per_expression
from vg_utils.models.proposals import ProposalNetwork


class ConcatFusion(nn.Module):
    """The text vector repeated over the map, concatenated to it, and a 1x1 convolution.

    Args:
        clip: whose map has C channels and whose text vectors D.
        head: the settings.
    """

    def __init__(self, clip: Backbone, head: ClipRPNConfig) -> None:
        super().__init__()
        self.channels = head.channels or clip.map_channels
        self.conv = nn.Conv2d(clip.map_channels + clip.embed_dim, self.channels, 1)

    def prepare(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) -> what fusion makes of the images alone (B, channels, h, w)."""
        return F.conv2d(maps, self.conv.weight[:, : maps.shape[1]], self.conv.bias)

    def forward(self, seen: Tensor, text: Features, image_index: Tensor) -> Tensor:
        """Prepared maps (B, channels, h, w) and text vectors (N, D) -> fused maps (N, channels, h, w)."""
        # A 1x1 convolution of a concatenation is the sum of two: of the map, the same for all phrases of a
        # image, and of the text, the same at all positions. The project computes both at each position of
        # each phrase; the sum is the same number.
        of_text = self.conv.weight[:, -text["pooled"].shape[1] :].flatten(1)
        said = F.linear(text["pooled"], of_text)  # (N, channels)
        return per_expression(seen, image_index) + said[:, :, None, None]


class AttentionFusion(nn.Module):
    """Positions of the map ask, the text answers: a transformer layer of cross-attention and feed-forward.

    The project's text is the one pooled vector (`attend_to="pooled"`). The softmax over one key is 1 whatever
    the query, so the attention adds the same vector at every position of every image, and the weights that
    make queries and keys never learn: it is a sum, not attention. `attend_to="tokens"` gives it the words.

    Args:
        clip: whose map has C channels; text vectors have D, text tokens T.
        head: the settings.

    Raises:
        ConfigError: the number of heads does not divide the number of channels.
    """

    def __init__(self, clip: Backbone, head: ClipRPNConfig) -> None:
        super().__init__()
        self.attend_to = head.attend_to
        self.channels = channels = head.channels or clip.map_channels
        if channels % head.heads:
            raise ConfigError(
                f"model.clip_rpn.heads: expected a divisor of the fused map's {channels} channels, "
                f"got {head.heads}"
            )
        self.project = nn.Identity()
        if channels != clip.map_channels:  # CLIP's map is positive: without the norm its mean drowns the text
            norm = GroupNorm(1, clip.map_channels)
            self.project = nn.Sequential(norm, nn.Conv2d(clip.map_channels, channels, 1))
        text_size = clip.text_width if self.attend_to == "tokens" else clip.embed_dim
        self.attention = nn.MultiheadAttention(
            channels, head.heads, head.dropout, kdim=text_size, vdim=text_size, batch_first=True
        )
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, head.feed_forward),
            nn.ReLU(inplace=True),
            nn.Dropout(head.dropout),
            nn.Linear(head.feed_forward, channels),
        )
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dropout = nn.Dropout(head.dropout)

    def prepare(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) -> what fusion makes of the images alone (B, channels, h, w)."""
        return self.project(maps)

    def forward(self, maps: Tensor, text: Features, image_index: Tensor) -> Tensor:
        """Prepared maps (B, channels, h, w), text of N phrases -> fused maps (N, channels, h, w)."""
        x = per_expression(maps.flatten(2).transpose(1, 2), image_index)  # (N, h * w, channels)
        x = self.norm_attention(x + self.dropout(self.attend(x, text)))
        x = self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))
        return x.transpose(1, 2).unflatten(2, maps.shape[2:])

    def attend(self, queries: Tensor, text: Features) -> Tensor:
        """What the text answers to each position, before the residual: (N, h * w, channels) -> the same."""
        if self.attend_to == "tokens":
            keys, padding = text["tokens"], text["mask"] < 0.5  # (N, L, T), (N, L)
        else:
            keys, padding = text["pooled"][:, None], None  # (N, 1, D)
        return self.attention(queries, keys, keys, key_padding_mask=padding, need_weights=False)[0]


class ClipRPN(GroundingModel):
    """What the two systems share; they differ in `fusion_type`.

    Shapes with the default configuration (RN50 at 224): a 2048x7x7 map an image, text vectors of 1024 and
    length 1 (or tokens of 512), a fused 2048x7x7 map and 735 anchors a phrase.
    """

    ranks_boxes = True
    parts = ("clip_rpn",)
    fusion_type: type[ConcatFusion | AttentionFusion]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.clip_rpn
        self.loss_weights = {"objectness": head.objectness_weight, "box_regression": head.box_weight}
        self.image_size = config.image_size
        self.clip = build_backbone(config.clip, config.image_size)
        self.fusion = self.fusion_type(self.clip, head)
        self.proposals = ProposalNetwork(self.fusion.channels, config.image_size, self.clip.stride, head)
        self.reads_tokens = getattr(self.fusion, "attend_to", "pooled") == "tokens"
        self.clip.freeze_unread(levels=(4,), pooled_images=False, pooled_texts=not self.reads_tokens)

    def backbones(self) -> dict[str, nn.Module]:
        return {"clip": self.clip}

    def encode_images(self, images: Tensor) -> Features:
        return {"map": self.clip.encode_maps(images, levels=(4,))[0]}

    def prepare_images(self, image_features: Features) -> Features:
        """What the fusion makes of each image's map, (B, channels, h, w)."""
        if "seen" in image_features:
            return image_features
        return {"seen": self.fusion.prepare(image_features["map"])}

    def encode_texts(self, tokens: Tensor) -> Features:
        text = self.clip.encode_texts(tokens)
        if not self.reads_tokens:
            return {"pooled": F.normalize(text.pooled.float(), dim=1)}
        return text.words()

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        """Fuse and propose.

        Returns:
            `boxes_cxcywh` (N, 4), `score` (N,), `objectness` (N, A) logits and `deltas` (N, A, 4) of the A
            anchors; outside training and export also `proposals_cxcywh` (N, K, 4) and `proposal_scores`
            (N, K), the best first, filled up with zeros.
        """
        # Fuse the phrase into the map, and score and move the anchors on it
        seen = self.prepare_images(image_features)["seen"]
        fused = self.fusion(seen, text_features, image_index)  # (N, channels, h, w)
        logits, deltas = self.proposals(fused)
        outputs = {"objectness": logits, "deltas": deltas}

        # Answer with the best proposal
        if self.training or torch.compiler.is_exporting():  # the suppression would not change the best
            boxes, scores = self.proposals.best(logits, deltas)
        else:
            proposals, proposal_scores = self.proposals.propose(logits, deltas)
            boxes, scores = proposals[:, 0], proposal_scores[:, 0]
            outputs["proposals_cxcywh"] = to_cxcywh(proposals) / self.image_size
            outputs["proposal_scores"] = proposal_scores
        return outputs | {"boxes_cxcywh": to_cxcywh(boxes) / self.image_size, "score": scores}

    def candidates(self, outputs: Features) -> tuple[Tensor, Tensor]:
        return outputs["proposals_cxcywh"], outputs["proposal_scores"]

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        targets = to_xyxy(target_boxes_cxcywh.float()) * self.image_size
        return self.proposals.losses(outputs["objectness"], outputs["deltas"], targets)


class ClipRPNConcat(ClipRPN):
    """Fusion by concatenation."""

    fusion_type = ConcatFusion


class ClipRPNAttention(ClipRPN):
    """Fusion by attention."""

    fusion_type = AttentionFusion
