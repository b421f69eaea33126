"""A copy of a model that only answers: the same function, in fewer and faster operations.

- Batch normalisation, a constant scale and shift once nothing trains, goes into the convolution before it.
- What autocast would cast at every call, matrices and kernels, is cast once. Autocast stays on for the rest,
  so that each operation sees the numbers that it would have seen.
- HRNet's branches of 18 and 36 channels get channels of zeros, up to a multiple of eight: tensor cores want
  that, and cuDNN would otherwise copy each map into such a shape before each of some 300 convolutions.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vg_utils.models.base import GroundingModel
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.models.precision import inference_dtype

MULTIPLE = 8  # of channels, for tensor cores in half precision


def inference_copy(model: GroundingModel, device: torch.device | str) -> GroundingModel:
    """The model in evaluation mode on a device, for use under `autocast(device)`.

    It shares nothing with the model that it was made of, and cannot be trained.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(made)
    for module in made.modules():
        if isinstance(module, HRNetBackbone):
            pad_channels(module)
    made = made.to(device, memory_format=torch.channels_last)
    dtype = inference_dtype(device)
    if dtype != torch.float32:
        cast_weights(made, dtype)
    return made


def fold_batch_norms(module: nn.Module) -> None:
    """Put each BatchNorm that follows a convolution into it, everywhere in the module, in place.

    A convolution and the next child of the same module with as many channels are taken for such a pair: it
    is so in timm's, open_clip's and our networks, and tests compare their outputs.
    """
    for part in list(module.modules()):
        for (_, conv), (name, norm) in pairwise(list(part.named_children())):
            if not isinstance(norm, nn.BatchNorm2d) or not isinstance(conv, nn.Conv2d):
                continue
            if norm.num_features != conv.out_channels or norm.running_mean is None:
                continue
            fused = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            setattr(part, name, getattr(norm, "act", nn.Identity()))  # timm's norms hold the activation


def pad_channels(hrnet: HRNetBackbone) -> None:
    """Add channels of zeros to an HRNet without batch normalisation, where it has no multiple of eight.

    They stay zero through sums, activations and resizing, so no other channel changes. The first input and
    the map that is read keep their channels; where the latter's are odd themselves, nothing is done.
    """
    if hrnet.channels % MULTIPLE:
        return
    for conv in hrnet.net.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == 1:
            new_in = conv.in_channels if conv.in_channels == 3 else _rounded(conv.in_channels)
            added = (_rounded(conv.out_channels) - conv.out_channels, new_in - conv.in_channels)
            conv.weight = _with_zeros(conv.weight, (0, 0, 0, 0, 0, added[1], 0, added[0]))
            if conv.bias is not None:
                conv.bias = _with_zeros(conv.bias, (0, added[0]))
            conv.out_channels, conv.in_channels = conv.out_channels + added[0], new_in


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give matrices and kernels the type that autocast would cast them to at each call, in place.

    Norms, token tables and positions, which it leaves in float32, stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not parametrize.is_parametrized(module):
            module.to(dtype)
        elif isinstance(module, nn.MultiheadAttention) and not parametrize.is_parametrized(module):
            for name in ("in_proj_weight", "in_proj_bias", *(f"{x}_proj_weight" for x in "qkv")):
                if getattr(module, name) is not None:
                    setattr(module, name, nn.Parameter(getattr(module, name).to(dtype), requires_grad=False))


def _rounded(channels: int) -> int:
    return -(-channels // MULTIPLE) * MULTIPLE


def _with_zeros(values: Tensor, padding: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(nn.functional.pad(values, padding), requires_grad=False)
