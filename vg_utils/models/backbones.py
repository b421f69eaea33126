"""What a pretrained pair of encoders, of images and of texts, has to offer to the models.

A family is one file, with a `Backbone` in it, and a line in `build_backbone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.config import ClipConfig
from vg_utils.config_checks import told
from vg_utils.data.batches import Tokenizer
from vg_utils.models.finetuning import Tower
from vg_utils.models.precision import autocast

ENCODED_AT_ONCE = 256  # images or texts in one call, which bounds the memory


class WeightsError(RuntimeError):
    """Weights that cannot be had or do not fit; the message names the ways out."""


class TextFeatures(NamedTuple):
    """What a text encoder says of N phrases of up to L tokens."""

    pooled: Tensor  # (N, embed_dim), in the space of the images' vectors
    tokens: Tensor  # (N, L, text_width), after the last layer
    mask: Tensor  # (N, L) bool, True for real tokens, False for padding

    def words(self) -> dict[str, Tensor]:
        """The tokens and their mask as features; the mask as numbers: a cache pads them with zeros."""
        return {"tokens": self.tokens, "mask": self.mask.float()}


class Backbone(nn.Module):
    """Two encoders whose pooled vectors share a space, and the image encoder's maps.

    Images are (B, 3, S, S), uint8 or float in [0, 1]; a backbone normalises them as its own weights want it.

    Attributes:
        tokenizer: texts -> int64 (N, L) tokens, padding 0, cut to the longest row. It can be pickled: batches
            are made in other processes.
        image_size: side S of the square input in pixels.
        embed_dim: size D of the pooled vectors (1024 for RN50).
        text_width: channels of the text tokens (512 for RN50).
        source: where the weights came from, the config's word for it.
        levels: channels and stride of the maps 1 to 4, from fine to coarse.
        logit_scale: logarithm of the inverse temperature that cosines were trained with, a scalar.
    """

    tokenizer: Tokenizer
    image_size: int
    embed_dim: int
    text_width: int
    source: str
    levels: dict[int, tuple[int, int]]
    logit_scale: Tensor

    @property
    def map_channels(self) -> int:
        """Channels of the coarsest map (2048 for RN50)."""
        return self.levels[4][0]

    @property
    def stride(self) -> int:
        """Of the coarsest map, in input pixels (32 for RN50, 16 for ViT-B/16)."""
        return self.levels[4][1]

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> pooled vectors (B, D)."""
        raise NotImplementedError

    def encode_maps(self, images: Tensor, levels: tuple[int, ...] = (4,)) -> list[Tensor]:
        """(B, 3, S, S) -> the maps (B, C, h, w) of the named levels."""
        raise NotImplementedError

    def encode_texts(self, tokens: Tensor) -> TextFeatures:
        """(N, L) int64 of the tokenizer -> pooled and token features; padding changes nothing."""
        raise NotImplementedError

    def towers(self) -> tuple[Tower, Tower]:
        """The image and the text encoder as blocks from input to output, see `vg_utils.models.finetuning`."""
        raise NotImplementedError

    def freeze_unread(self, levels: tuple[int, ...], pooled_images: bool, pooled_texts: bool) -> None:
        """Train nothing that leads only to what a model does not read.

        Args:
            levels: the maps that are read.
            pooled_images, pooled_texts: whether the pooled vectors are.
        """
        raise NotImplementedError

    def unknown_words(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Of each text the words that mean nothing to the text encoder, in order and without repeats."""
        return [()] * len(texts)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, S, S), on any device -> unit vectors (n, D) on the CPU, many at a time."""
        device = self.logit_scale.device
        with autocast(device):
            parts = [self.encode_images(p.to(device)) for p in images.split(ENCODED_AT_ONCE) if len(p)]
        return _unit(parts, self.embed_dim)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D) of phrases on the CPU, each different phrase encoded once."""
        unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        different, device = list(unique), self.logit_scale.device
        # Tokens a part at a time: each is as long as its own longest text, not as the longest of all.
        starts = range(0, len(different), ENCODED_AT_ONCE)
        tokens = (self.tokenizer(different[i : i + ENCODED_AT_ONCE]).to(device) for i in starts)
        parts = [self.encode_texts(part).pooled for part in tokens]
        return _unit(parts, self.embed_dim)[[unique[text] for text in texts]]


def build_backbone(config: ClipConfig, image_size: int) -> Backbone:
    """The backbone that the config names, its weights loaded.

    Raises:
        ConfigError: no such backbone.
        WeightsError: weights that cannot be had or do not fit.
    """
    if config.name == "photos":
        from vg_utils.models.photo import PhotoBackbone

        return PhotoBackbone(config, image_size)
    from vg_utils.models.clip import ClipBackbone  # late: open_clip imports transformers, which takes seconds

    return ClipBackbone(config, image_size)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 or float in [0, 1] -> float32 with the backbone's mean and deviation taken out."""
    if not images.is_floating_point():
        images = images.float() / 255
    return (images - mean) / std


def ways_out(kind: str, name: str, weights: str, flag: str, error: Exception) -> str:
    """The message of a WeightsError: what could not be loaded, why, and what to do."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__  # torch lists every tensor amiss
    public = "connect to the internet and try again; " if weights in ("openai", "imagenet") else ""
    return (
        f"{kind} {name!r}: the weights {told(weights)} could not be loaded ({reason}). Ways out: {public}"
        f"name a local file with --{flag} FILE; or train from nothing: --random-init"
    )


def _unit(parts: list[Tensor], width: int) -> Tensor:
    if not parts:
        return torch.zeros(0, width)
    return F.normalize(torch.cat(parts).float(), dim=1).cpu()
