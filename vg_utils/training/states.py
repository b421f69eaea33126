"""The state of a training that was saved: looked through before any of it is taken up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vg_utils.models.checkpoints import CheckpointError

COUNTS = ("epoch", "batch", "step")


def check_state(state: dict, optimizer: Optimizer, scheduler: LRScheduler, path: Path) -> None:
    """Refuse a saved state that this training could not go on from.

    Args:
        state: what `torch.load` read, of any types.
        optimizer, scheduler: of the training, as they are at its start.
        path: of the file, for the message.

    Raises:
        CheckpointError: names the part and what was expected of it.
    """
    try:
        for name in COUNTS:
            _expect(type(state[name]) is int and state[name] >= 0, name, "a count")
        _expect(type(state["best"]) is float and not math.isnan(state["best"]), "best", "a score")
        history = state["history"]
        whole = isinstance(history, list) and len(history) == state["epoch"]
        _expect(whole and all(isinstance(epoch, dict) for epoch in history), "history", "a dict an epoch")
        totals = [state["totals"]["count"], *state["totals"]["sums"].values()]
        _expect(all(_is_finite(value, ()) for value in totals), "totals", "finite numbers")
        _alike(state["scheduler"], scheduler.state_dict(), "scheduler")
        saved, own = state["optimizer"], optimizer.state_dict()
        _alike(saved["param_groups"], own["param_groups"], "optimizer.param_groups")
        shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
        for index, moments in saved["state"].items():
            for name, value in moments.items():
                fits = _is_finite(value, ()) or _is_finite(value, shapes[index])
                _expect(fits, f"optimizer.state[{index}].{name}", f"finite numbers {tuple(shapes[index])}")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a training state, got one without {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _expect(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {what}")


def _is_finite(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether it is a tensor of this shape without NaN or infinity."""
    return isinstance(value, Tensor) and value.shape == shape and bool(torch.isfinite(value).all())


def _alike(saved: Any, own: Any, name: str) -> None:
    """Nests of lists and dicts are of the same types all through; what only one has is of another torch."""
    number = isinstance(own, int | float) and not isinstance(own, bool)
    alike = isinstance(saved, (int, float) if number else type(own)) and isinstance(own, bool) == isinstance(
        saved, bool
    )
    _expect(alike, name, type(own).__name__)
    if isinstance(own, dict):
        for key in saved.keys() & own.keys():
            _alike(saved[key], own[key], f"{name}.{key}")
    elif isinstance(own, list | tuple):
        _expect(len(saved) == len(own), name, f"{len(own)} entries")
        for i, (one, other) in enumerate(zip(saved, own, strict=True)):
            _alike(one, other, f"{name}[{i}]")
    elif number:
        _expect(math.isfinite(saved), name, "a finite number")
