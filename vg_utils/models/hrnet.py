"""HRNet (Wang et al. 2020), the branch for fine position, a timm model."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hrnet import HighResolutionNetFeatures, cfg_cls
from torch import Tensor, nn

from vg_utils.config import ConfigError, HRNetConfig
from vg_utils.models.backbones import WeightsError, normalise, ways_out
from vg_utils.models.finetuning import Tower, set_tuning
from vg_utils.models.shipped import load_shipped
from vg_utils.models.weight_files import read_weights

SCENES_HRNET = "scenes-hrnet"


HRNET_STRIDE_16 = 3  # timm's index of the map with stride 16
READ = HRNET_STRIDE_16 - 1  # its place among the maps, which begin with stride 4; timm counts from stride 2


class HRNetBackbone(nn.Module):
    """HRNet's feature map at stride 16: (B, 3, S, S) -> (B, channels, S/16, S/16)."""

    stride = 16

    def __init__(self, config: HRNetConfig, image_size: int = 224) -> None:
        super().__init__()
        self.net = load_hrnet(config, image_size)
        _drop_unread(self.net)
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
        """Its blocks from input to output, see `vg_utils.models.finetuning`.

        What makes the last maps of other strides is in none: nobody reads them, so it never trains.
        """
        n = self.net
        *modules, fusing = n.stage4
        first = [[n.conv1, n.bn1, n.conv2, n.bn2, n.layer1], [n.transition1, n.stage2]]
        last = [*modules, fusing.branches, fusing.fuse_layers[READ]]
        last += [n.incre_modules[READ]] if n.incre_modules is not None else []  # ours has none
        return ([*first, [n.transition2, n.stage3, n.transition3], last],)


class _LastFusion(nn.Module):
    """HRNet's last module, which fuses the one map that is read; its parameters have timm's names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.branches, self.fuse_layers, self.fuse_act = module.branches, module.fuse_layers, module.fuse_act

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        parts = [layer(x) for layer, x in zip(self.fuse_layers[READ], maps, strict=True)]
        return [*maps[:READ], self.fuse_act(reduce(torch.add, parts)), *maps[READ + 1 :]]


class _Unread(nn.Sequential):
    """Layers whose outcome nobody reads, kept for their parameters' sake."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _drop_unread(net: nn.Module) -> None:
    """Make no maps but the one that is read; weights, and their names in files, stay as they are."""
    net.stage4[-1] = _LastFusion(net.stage4[-1])
    if net.incre_modules is not None:
        for place, layers in enumerate(net.incre_modules):
            if place != READ:
                net.incre_modules[place] = _Unread(*layers)


def _keep_dtype(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Autocast makes what is resized float32, and with it all that it is added to: move half the bytes."""
    return output.to(inputs[0].dtype)


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
            ways_out("HRNet", config.name, config.weights, "model.hrnet.weights", error)
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
    missing, _ = net.load_state_dict(read_weights(path), strict=False)
    if missing:
        raise ValueError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]!r}")
