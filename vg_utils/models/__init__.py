"""The models by name. A new one is a file here and a line in `MODELS`."""

from __future__ import annotations

import torch

from vg_utils.config import ConfigError, ModelConfig, nearest
from vg_utils.models.base import GroundingModel
from vg_utils.models.blind import TextOnly
from vg_utils.models.clip_hrnet import ClipHRNet
from vg_utils.models.clip_rpn import ClipRPNAttention, ClipRPNConcat
from vg_utils.models.dense_grounder import DenseGrounder
from vg_utils.models.transvg import TransVG

MODELS: dict[str, type[GroundingModel]] = {
    "clip-hrnet": ClipHRNet,
    "clip-rpn-attention": ClipRPNAttention,
    "clip-rpn-concat": ClipRPNConcat,
    "dense-grounder": DenseGrounder,
    "text-only": TextOnly,
    "transvg": TransVG,
}


# cuDNN's attention makes a plan for every new shape, and every batch has another number of phrases: with it a
# training step of `dense-grounder` takes eight times as long (1,777 against 207 ms on an H100, torch 2.11).
torch.backends.cuda.enable_cudnn_sdp(False)


def build_model(name: str, config: ModelConfig) -> GroundingModel:
    """The model called `name`, with the weights of its backbones loaded.

    Raises:
        ConfigError: no such model; the message names the nearest.
        WeightsError: a backbone's weights cannot be had.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}{nearest(name, MODELS)}")
    return MODELS[name](config)
