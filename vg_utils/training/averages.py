"""What a training keeps count of: totals of an epoch, and a moving average of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vg_utils.models.base import Features, GroundingModel


class RunningTotals:
    """Sums and counts on the device; divided once, at the end of the epoch, over all processes."""

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = torch.zeros((), device=device)

    def add(self, means: Features, n: int) -> None:
        values = [value.detach().float() for value in means.values()]
        if not self.sums:
            self.sums = {name: torch.zeros_like(value) for name, value in zip(means, values, strict=True)}
        torch._foreach_add_([self.sums[name] for name in means], values, alpha=n)  # a kernel for all
        self.count += n

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        count = accelerator.reduce(self.count.clone())
        return {name: (accelerator.reduce(value.clone()) / count).item() for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        self.count = state["count"].to(self.count.device)
        self.sums = {name: value.to(self.count.device) for name, value in state["sums"].items()}


class MovingAverage:
    """An exponential moving average of what trains in a model; its running statistics are the model's.

    What is frozen is left alone: averaged with itself it would drift by rounding.

    Args:
        source: the model that trains, on its device.
        decay: share of the old average that an update keeps.

    Attributes:
        model: a copy of the model, with the averaged weights.
    """

    def __init__(self, source: GroundingModel, decay: float) -> None:
        self.model = copy.deepcopy(source)
        self.average = get_ema_multi_avg_fn(decay)
        # Collected once: to walk through hundreds of modules at every step keeps a GPU waiting.
        pairs = zip(self.model.parameters(), source.parameters(), strict=True)
        training = [(a.detach(), b.detach()) for a, b in pairs if b.requires_grad]
        self.averaged, self.current = map(list, zip(*training, strict=True))
        # Of one type each: a list that mixes counters with statistics is copied one by one, 900 of HRNet.
        pairs = list(zip(self.model.buffers(), source.buffers(), strict=True))
        kinds = {buffer.dtype for _, buffer in pairs}
        self.buffers = [list(zip(*(p for p in pairs if p[1].dtype == kind), strict=True)) for kind in kinds]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of the source after an optimizer step."""
        self.average(self.averaged, self.current, None)
        for averaged, current in self.buffers:
            torch._foreach_copy_(averaged, current)
