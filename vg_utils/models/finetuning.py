"""How much of a pretrained encoder is trained: from nothing to everything.

| tuning | what trains |
| --- | --- |
| `frozen` | nothing; its features can be cached |
| `norms` | normalisation layers and positions (after Frankle et al. 2021; Lu et al. 2022) |
| `last` | the last block |
| `lora` | low-rank updates of all convolutions and matrices, through peft (Hu et al. 2022) |
| `full` | everything |

An encoder is a list of blocks, each a list of named modules or parameters, from the input to the output. The
same list gives each block its learning rate where rates decay towards the input (`train.layer_decay`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vg_utils.config import ConfigError, Tuning

Block = Sequence[nn.Module | nn.Parameter]
Tower = Sequence[Block]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameters_of(block: Block) -> list[nn.Parameter]:
    """All parameters of a block."""
    return [p for part in block for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]


def set_tuning(tower: Tower, tuning: Tuning, lora_rank: int = 8) -> None:
    """Leave trainable what the tuning says.

    Goes through the parameters: `requires_grad = False` set on a Module freezes nothing.

    Raises:
        ConfigError: no such tuning, or LoRA without peft.
    """
    for block in tower:
        for parameter in parameters_of(block):
            parameter.requires_grad_(tuning == "full")
    if tuning == "last":
        for parameter in parameters_of(tower[-1]):
            parameter.requires_grad_(True)
    elif tuning == "norms":
        for parameter in _norms_and_positions(tower):
            parameter.requires_grad_(True)
    elif tuning == "lora":
        for block in tower:
            for part in block:
                if isinstance(part, nn.Module):
                    _add_lora(part, lora_rank)
    elif tuning not in ("frozen", "full"):
        raise ConfigError(f"tuning: expected frozen, norms, last, lora or full, got {tuning!r}")


def _norms_and_positions(tower: Tower) -> list[nn.Parameter]:
    # Of the bare parameters, positions are the matrices at the input; those at the output are projections.
    found = [part for part in tower[0] if isinstance(part, nn.Parameter) and part.ndim == 2]
    for part in (part for block in tower for part in block if isinstance(part, nn.Module)):
        for module in part.modules():
            if isinstance(module, NORMS):
                found += list(module.parameters())
            found += [p for name, p in module.named_parameters(recurse=False) if "positional" in name]
    return found


def _add_lora(module: nn.Module, rank: int) -> None:
    """Wrap every convolution and matrix inside the module, in place; only the updates then train.

    CLIP's attention pooling hands its matrices to a function, past any wrapper, so it is left frozen.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"tuning: lora wants peft (pip install peft); {error}") from None
    if type(module).__name__ == "AttentionPool2d":
        return
    attentions = [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
    names = [
        name
        for name, part in module.named_modules()
        if name
        and isinstance(part, nn.Linear | nn.Conv2d)
        and getattr(part, "groups", 1) == 1
        and not any(part is attention.out_proj for attention in attentions)
    ]
    if names:
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
        inject_adapter_in_model(settings, module)
    for attention in attentions:
        for part, name in ((attention, "in_proj_weight"), (attention.out_proj, "weight")):
            update = _LowRankUpdate(getattr(part, name), rank)
            parametrize.register_parametrization(part, name, update)


class _LowRankUpdate(nn.Module):
    """LoRA of an attention's matrix: as peft's, zero at first, with an alpha of twice the rank.

    Peft adds the update to such a matrix and takes it off again in each call, and rounding would move it.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.lora_B @ self.lora_A
