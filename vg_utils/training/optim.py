"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vg_utils.config import ConfigError, TrainConfig
from vg_utils.models.base import GroundingModel
from vg_utils.models.finetuning import parameters_of


def make_optimizer(model: GroundingModel, train: TrainConfig) -> Optimizer:
    """AdamW or Adam over what is trainable; backbones have their own rates, biases and norms no decay.

    A backbone's last block has `backbone_lr` (of its text encoder `text_lr`), the one before it
    `layer_decay` times that, and so on towards the input (Clark et al. 2020, section 3.3.3; Bao et al. 2022).

    Raises:
        ConfigError: nothing is left to train.
    """
    rates = {id(p): train.backbone_lr for b in model.backbones().values() for p in b.parameters()}
    for backbone in model.backbones().values():
        image_and_text = (train.backbone_lr, train.text_lr or train.backbone_lr)
        for last, tower in zip(image_and_text, backbone.towers(), strict=False):  # HRNet has no text
            for distance, block in enumerate(reversed(tower)):
                rate = last * train.layer_decay**distance
                rates |= {id(parameter): rate for parameter in parameters_of(block)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = train.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates.get(id(parameter), train.lr), decay), []).append(parameter)
    if not groups:
        raise ConfigError("nothing to train: every parameter of the model is frozen")
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[train.optimizer](
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        fused=torch.cuda.is_available() or None,  # one kernel for hundreds of small parameters, not ten each
    )


def make_scheduler(optimizer: Optimizer, train: TrainConfig, steps: int) -> LambdaLR:
    """Linear warm-up over a share of all steps, then a cosine to zero, as a factor on each group's rate."""
    warmup = max(1, round(train.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, factor)


def set_rates(scheduler: LambdaLR) -> None:
    """Give each group the rate that the schedule has for the step it is at, whatever the rate was."""
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
