"""A backbone for photographs: EfficientNet-Lite for images, MiniLM for phrases, in one space.

Where RefScenes' CLIP knows some hundred words, this one has a meaning for any: MiniLM (Wang et al. 2020; with
the weights of Sentence-BERT's authors, Reimers & Gurevych 2019) read a billion pairs of sentences,
EfficientNet-Lite (Tan & Le 2019) saw ImageNet, and `experiments.pretrain_photos` brought both into one space
as CLIP does (Radford et al. 2021). Small on purpose: it comes with the package, in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vg_utils.config import ClipConfig, ConfigError
from vg_utils.models.backbones import Backbone, TextFeatures, WeightsError, normalise, ways_out
from vg_utils.models.finetuning import Tower, set_tuning
from vg_utils.models.minilm import MiniLM, mean_of_tokens
from vg_utils.models.shipped import load_shipped, unpack_tensors
from vg_utils.models.weight_files import read_weights
from vg_utils.models.wordpiece import WordPiece

PHOTOS = "photos"  # its name in the configuration and of its file of weights
IMAGE_NET = "tf_efficientnet_lite2"  # timm's name; lite0, 3 and 4 fit as well
IMAGE_FEATURES = 1280  # of its head's convolution, in all sizes
TEXT = {"width": 384, "heads": 12, "layers": 4}  # MiniLM's, but two of its six layers
EMBED_DIM = 384  # of the common space, that of Sentence-BERT's vectors
MEAN, STD = 127 / 255, 128 / 255  # of EfficientNet-Lite's input, in all channels
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # of timm's EfficientNet; at the end of each group, levels 1 to 4
STRIDES = (4, 8, 16, 32)
KEPT_WHOLE = 8192  # numbers: matrices that are smaller are not shipped in 8 bits, for `pack`


class PhotoBackbone(Backbone):
    """The two encoders. Any image size that is a multiple of 32 can be encoded."""

    def __init__(self, config: ClipConfig, image_size: int) -> None:
        super().__init__()
        # Imported late: it costs a second, and so a model without photographs does not pay for it.
        from timm import create_model

        self.source, self.image_size = config.weights, image_size
        self.tokenizer = WordPiece()
        self.image = create_model(IMAGE_NET, features_only=True)
        channels: list[int] = self.image.feature_info.channels()[1:]  # the first has stride 2
        self.levels = dict(enumerate(zip(channels, STRIDES, strict=True), 1))
        self.image_head = nn.Sequential(
            nn.Conv2d(self.map_channels, IMAGE_FEATURES, 1, bias=False),
            nn.BatchNorm2d(IMAGE_FEATURES, eps=1e-3),
            nn.ReLU6(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.embed_dim, self.text_width = EMBED_DIM, TEXT["width"]
        self.image_projection = nn.Linear(IMAGE_FEATURES, self.embed_dim)
        self.text = MiniLM(len(self.tokenizer), self.tokenizer.context_length, **TEXT)
        self.text_projection = nn.Linear(self.text_width, self.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's at first
        load_weights(self, config.weights, image_size)
        self.requires_grad_(False)
        image, text = self.towers()
        set_tuning(text, config.text_tuning, config.lora_rank)
        set_tuning(image, config.tuning, config.lora_rank)
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        (last,) = self.encode_maps(images)
        return self.image_projection(self.image_head(last))

    def encode_maps(self, images: Tensor, levels: tuple[int, ...] = (4,)) -> list[Tensor]:
        x = self.image.bn1(self.image.conv_stem(normalise(images, self.mean, self.std)))
        maps = {}
        for level, stages in enumerate(STAGES[: max(levels)], 1):
            for stage in stages:
                x = self.image.blocks[stage](x)
            maps[level] = x
        return [maps[level] for level in levels]

    def encode_texts(self, tokens: Tensor) -> TextFeatures:
        mask = tokens != 0
        x = self.text(tokens, mask)  # (N, L, text_width)
        return TextFeatures(self.text_projection(mean_of_tokens(x, mask)), x, mask)

    def unknown_words(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        return [self.tokenizer.unknown_words(text) for text in texts]

    def towers(self) -> tuple[Tower, Tower]:
        first, *middle, last = [[self.image.blocks[stage] for stage in stages] for stages in STAGES]
        stem = [self.image.conv_stem, self.image.bn1]
        image = [[*stem, *first], *middle, [*last, self.image_head, self.image_projection]]
        text = self.text
        *layers, end = text.layers
        start = [text.words, text.positional_embedding, text.norm]
        return image, [start, *([layer] for layer in layers), [end, self.text_projection]]

    def freeze_unread(self, levels: tuple[int, ...], pooled_images: bool, pooled_texts: bool) -> None:
        if not pooled_texts:
            self.text_projection.requires_grad_(False)
        if pooled_images:
            return
        unread = [self.image_head, self.image_projection]
        unread += [self.image.blocks[i] for stages in STAGES[max(levels, default=0) :] for i in stages]
        unread += [] if levels else [self.image.conv_stem, self.image.bn1]
        for module in unread:
            module.requires_grad_(False)


def load_weights(module: nn.Module, weights: str, image_size: int) -> None:
    """Put the weights that the config asks for into the backbone; "random" leaves it as it is.

    Args:
        module: a `PhotoBackbone` without low-rank updates.
        weights: "random", "shipped", or a file, in 8 bits or not.
        image_size: matters to shipped weights alone, see `vg_utils.models.shipped`.

    Raises:
        ConfigError: weights of another backbone are asked for.
        WeightsError: weights that cannot be had or do not fit.
    """
    if weights == "random":
        return
    if weights in ("openai", "imagenet"):
        raise ConfigError(
            f"model.clip.weights: of {PHOTOS!r} expected shipped, random or a file, got {weights!r}"
        )
    try:
        if weights == "shipped":
            load_shipped(module, PHOTOS, image_size)
        else:
            packed = read_weights(Path(weights).expanduser())
            module.load_state_dict(unpack_tensors(packed, module.state_dict()))
    except Exception as error:  # safetensors, torch and the file system each raise their own
        raise WeightsError(ways_out("backbone", PHOTOS, weights, "model.clip.weights", error)) from error
