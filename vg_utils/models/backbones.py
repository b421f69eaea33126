"""The pretrained parts: CLIP for pictures and phrases, HRNet for fine position; loading and freezing.

Both take pictures as (B, 3, S, S), uint8 or float in [0, 1], and normalise with their own mean and deviation.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import open_clip
import timm
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hrnet import HighResolutionNetFeatures, cfg_cls
from torch import Tensor, nn
from torch.nn import functional as F

from vg_utils.config import ClipConfig, ConfigError, HRNetConfig
from vg_utils.models.shipped import load_shipped
from vg_utils.models.tuning import Tower, set_tuning

open_clip.add_model_config(Path(__file__).parent / "configs")  # registers `scenes-rn`

SCENES_HRNET = "scenes-hrnet"
RESNET_STRIDES = (4, 8, 16, 32)  # of levels 1 to 4
HRNET_STRIDE_16 = 3  # timm's index of the map with stride 16


class WeightsError(RuntimeError):
    """Weights that cannot be had or do not fit; the message names the ways out."""


class TextFeatures(NamedTuple):
    """What CLIP says of N phrases of up to L tokens."""

    pooled: Tensor  # (N, embed_dim), in the space of the picture vectors
    tokens: Tensor  # (N, L, text_width), after the last layer norm
    mask: Tensor  # (N, L) bool, True for real tokens, False for padding

    def words(self) -> dict[str, Tensor]:
        """The tokens and their mask as features; the mask as numbers: a cache pads them with zeros."""
        return {"tokens": self.tokens, "mask": self.mask.float()}


class ClipBackbone(nn.Module):
    """CLIP's two encoders.

    Attributes:
        embed_dim: size D of the pooled vectors (1024 for RN50).
        text_width: channels of the text tokens (512 for RN50).
        source: where the weights came from, the config's word for it.
        map_channels: channels of the last feature map (2048 for RN50).
        stride: of that map, in input pixels (32 for RN50, 16 for ViT-B/16).
        levels: channels and stride of the maps 1 to 4: the stages of a ResNet, or the ends of the quarters of
            a ViT's blocks.
    """

    def __init__(self, config: ClipConfig, image_size: int) -> None:
        super().__init__()
        self.clip = load_clip(config, image_size)
        self.source = config.weights
        self.image_size = image_size
        clip, visual = self.clip, self.clip.visual
        self.is_resnet = hasattr(visual, "attnpool")
        if not self.is_resnet and not hasattr(visual, "patch_size"):
            raise ConfigError(f"model.clip.name: expected a CLIP with a ResNet or a ViT, got {config.name!r}")
        self.stride = RESNET_STRIDES[-1] if self.is_resnet else visual.patch_size[0]
        _resize_positions(visual.attnpool if self.is_resnet else visual, image_size // self.stride)
        self.embed_dim: int = visual.output_dim
        self.text_width: int = clip.positional_embedding.shape[1]
        self.levels: dict[int, tuple[int, int]] = {}
        for level, stride in enumerate(RESNET_STRIDES, 1):
            if self.is_resnet:
                self.levels[level] = (getattr(visual, f"layer{level}")[-1].conv3.out_channels, stride)
            else:
                self.levels[level] = (visual.positional_embedding.shape[1], self.stride)
        self.map_channels: int = self.levels[4][0]
        clip.requires_grad_(False)  # `logit_scale`, of CLIP's own loss, is in no tower
        image, text = self.towers()
        set_tuning(text, config.text_tuning, config.lora_rank)
        set_tuning(image, config.tuning, config.lora_rank)
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> pooled vectors (B, embed_dim)."""
        return self.clip.visual(normalise(images, self.mean, self.std))

    def encode_maps(self, images: Tensor, levels: tuple[int, ...] = (4,)) -> list[Tensor]:
        """(B, 3, S, S) -> the maps of the named levels."""
        images = normalise(images, self.mean, self.std)
        depth = 4 if self.is_resnet else len(self.clip.visual.transformer.resblocks)
        indices = [level if self.is_resnet else level * depth // 4 - 1 for level in levels]
        features = self.clip.visual.forward_intermediates(
            images, indices=indices, stop_early=True, intermediates_only=True
        )
        return features["image_intermediates"]

    def towers(self) -> tuple[Tower, Tower]:
        """The image and the text encoder as blocks from input to output, see `vg_utils.models.tuning`."""
        clip, v = self.clip, self.clip.visual
        if self.is_resnet:
            stem = [v.conv1, v.bn1, v.conv2, v.bn2, v.conv3, v.bn3]
            image = [stem, [v.layer1], [v.layer2], [v.layer3], [v.layer4, v.attnpool]]
        else:
            *blocks, last = v.transformer.resblocks
            stem = [v.conv1, v.class_embedding, v.positional_embedding, v.ln_pre]
            image = [stem, *([block] for block in blocks), [last, v.ln_post, v.proj]]
        *blocks, last = clip.transformer.resblocks
        first = [clip.token_embedding, clip.positional_embedding]
        text = [first, *([block] for block in blocks), [last, clip.ln_final, clip.text_projection]]
        return image, text

    def freeze_unused(self, levels: tuple[int, ...]) -> None:
        """Train nothing of the image encoder that the maps of these levels do not pass through."""
        visual = self.clip.visual
        if self.is_resnet:
            after = [getattr(visual, f"layer{level}") for level in range(max(levels) + 1, 5)]
            unused = [*after, visual.attnpool]
        else:
            blocks = visual.transformer.resblocks
            unused = [*blocks[max(levels) * len(blocks) // 4 :], visual.ln_post]
            visual.proj.requires_grad_(False)
        for module in unused:
            module.requires_grad_(False)

    def encode_texts(self, tokens: Tensor) -> TextFeatures:
        """(N, L) int64 CLIP tokens, L up to 77 -> pooled and token features.

        The text transformer is causal, so cutting padding columns off `tokens` changes nothing but the time.
        """
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]  # (N, L, width)
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        end = tokens.argmax(dim=-1)  # the end-of-text token has the highest number
        pooled = x[torch.arange(len(x), device=x.device), end] @ clip.text_projection
        return TextFeatures(pooled, x, tokens != 0)


class HRNetBackbone(nn.Module):
    """HRNet's feature map at stride 16: (B, 3, S, S) -> (B, channels, S/16, S/16)."""

    stride = 16

    def __init__(self, config: HRNetConfig, image_size: int = 224) -> None:
        super().__init__()
        self.net = load_hrnet(config, image_size)
        for module in self.net.modules():
            if isinstance(module, nn.Upsample):
                module.register_forward_hook(_keep_dtype)
        self.source = config.weights
        self.channels: int = self.net.feature_info.channels()[0]
        self.net.requires_grad_(False)
        set_tuning(self.towers()[0], config.tuning)
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(normalise(images, self.mean, self.std))[0]

    def towers(self) -> tuple[Tower]:
        """Its blocks from input to output, see `vg_utils.models.tuning`.

        What makes the last maps of other strides is in none: nobody reads them, so it never trains.
        """
        n, read = self.net, HRNET_STRIDE_16 - 1  # the maps begin with stride 4, timm counts from stride 2
        *modules, fusing = n.stage4
        first = [[n.conv1, n.bn1, n.conv2, n.bn2, n.layer1], [n.transition1, n.stage2]]
        last = [*modules, fusing.branches, fusing.fuse_layers[read]]
        last += [n.incre_modules[read]] if n.incre_modules is not None else []  # ours has none
        return ([*first, [n.transition2, n.stage3, n.transition3], last],)


def _keep_dtype(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Autocast makes what is resized float32, and with it all that it is added to: move half the bytes."""
    return output.to(inputs[0].dtype)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 or float in [0, 1] -> float32 with the backbone's mean and deviation taken out."""
    if not images.is_floating_point():
        images = images.float() / 255
    return (images - mean) / std


def load_clip(config: ClipConfig, image_size: int = 224) -> nn.Module:
    """An open_clip CLIP with the weights that the config asks for, float32, on the CPU.

    `image_size` matters to shipped weights alone, see `vg_utils.models.shipped`.

    Raises:
        ConfigError: no such model, or a model without QuickGELU for OpenAI's weights.
        WeightsError: weights that cannot be had or do not fit.
    """
    name, weights = config.name, config.weights
    if name not in open_clip.list_models():
        raise ConfigError(f"model.clip.name: open_clip has no model {name!r}")
    if weights == "random":
        return _unwarned(name)
    if weights == "openai" and not _quick_gelu(name):
        raise ConfigError(
            f"model.clip.name: OpenAI's weights need QuickGELU, got {name!r}; use {name + '-quickgelu'!r}"
        )
    path = Path(weights).expanduser()
    try:
        if weights == "openai":
            with _root_logger_off():  # it would log the failure that is raised below
                return open_clip.create_model(name, pretrained="openai")
        if weights == "shipped":
            return load_shipped(_unwarned(name), name, image_size)
        if path.is_dir():
            return open_clip.create_model(f"local-dir:{path}", require_pretrained=True)
        if not path.is_file():
            raise FileNotFoundError(f"no such file or folder: {path}")
        if path.suffix == ".pt" and _quick_gelu(name):
            # It guesses the architecture, heads and all, from the shapes in the file: the name has to decide.
            guessed = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
            clip = _unwarned(name)
            clip.load_state_dict(guessed.state_dict())
            return clip
        return open_clip.create_model(name, pretrained=str(path))
    except Exception as error:  # open_clip, the hub, torch and the file system each raise their own
        raise WeightsError(_ways_out("CLIP", name, weights, "model.clip.weights", error)) from error


def _unwarned(name: str) -> nn.Module:
    """A CLIP with random weights, without open_clip's warning that they are random: that was asked for."""
    with _root_logger_off():
        return open_clip.create_model(name, load_weights=False)


@contextlib.contextmanager
def _root_logger_off() -> Iterator[None]:
    """Nothing that is logged on the root logger itself, as open_clip does, is shown or sets up logging."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # with no handler at all, `logging.warning` would install one for good
    root.addFilter(_nothing)
    try:
        yield
    finally:
        root.removeFilter(_nothing)
        root.removeHandler(handler)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def load_hrnet(config: HRNetConfig, image_size: int = 224) -> nn.Module:
    """A timm HRNet that returns the stride-16 map, with the weights that the config asks for.

    `image_size` matters to shipped weights alone, see `vg_utils.models.shipped`.

    Raises:
        ConfigError: no such model.
        WeightsError: weights that cannot be had or do not fit.
    """
    ours = config.name == SCENES_HRNET
    if not ours and config.name not in timm.list_models("hrnet*"):
        raise ConfigError(
            f"model.hrnet.name: expected timm's hrnet_* or {SCENES_HRNET!r}, got {config.name!r}"
        )
    outputs = {"out_indices": (HRNET_STRIDE_16,)}
    try:
        if config.weights == "imagenet":
            if ours:
                raise FileNotFoundError(f"{SCENES_HRNET} is our own and has no ImageNet weights")
            return timm.create_model(config.name, features_only=True, pretrained=True, **outputs)
        if ours:
            net = HighResolutionNetFeatures(_small_hrnet(), feature_location="", **outputs)
        else:
            net = timm.create_model(config.name, features_only=True, **outputs)
        if config.weights == "shipped":
            load_shipped(net, config.name, image_size)
        elif config.weights != "random":
            _load_matching(net, Path(config.weights).expanduser())
        return net
    except Exception as error:
        raise WeightsError(
            _ways_out("HRNet", config.name, config.weights, "model.hrnet.weights", error)
        ) from error


def _small_hrnet() -> dict:
    """timm's hrnet_w18_small with a block less everywhere and half the stem: for RefScenes."""
    cfg = copy.deepcopy(cfg_cls["hrnet_w18_small"])
    cfg["stem_width"] = 32
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        cfg[stage]["num_blocks"] = tuple(1 for _ in cfg[stage]["num_blocks"])
    cfg["stage1"]["num_channels"] = (16,)
    return cfg


def _load_matching(net: nn.Module, path: Path) -> None:
    """Load a file of weights; a classifier's head may be left over, but nothing may be missing."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    state = timm.models.load_state_dict(str(path))
    missing, _ = net.load_state_dict(state, strict=False)
    if missing:
        raise ValueError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]!r}")


def _quick_gelu(name: str) -> bool:
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))


def _ways_out(kind: str, name: str, weights: str, flag: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__  # torch lists every tensor amiss
    public = "connect to the internet and try again; " if weights in ("openai", "imagenet") else ""
    return (
        f"{kind} {name!r}: the weights {weights!r} could not be loaded ({reason}). Ways out: {public}"
        f"name a local file with --{flag} FILE; or train from nothing: --random-init"
    )


def _resize_positions(module: nn.Module, side: int) -> None:
    """Interpolate the positions (1 + s*s, C) of an attention pooling or a ViT to another side, in place."""
    positions = module.positional_embedding.detach()
    if len(positions) != 1 + side * side:
        module.positional_embedding = nn.Parameter(resized_positions(positions, side).contiguous())


def resized_positions(positions: Tensor, side: int) -> Tensor:
    """Positions of a class token and of a square of places, interpolated: (1 + s*s, C) -> (1 + side^2, C)."""
    old = math.isqrt(len(positions) - 1)
    if old == side:
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].T])  # (1 + side * side, C)
