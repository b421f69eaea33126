"""The Accelerator of a training: its device, its processes and its precision."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from vg_utils.config import TrainConfig
from vg_utils.models.precision import best_precision


def make_accelerator(train: TrainConfig) -> Accelerator:
    """What the settings ask for, on the devices that there are."""
    precision = train.precision
    if precision == "auto":  # fp16 brings Accelerate's gradient scaler with it
        # Not asked of a PartialState: one that is made before the Accelerator overlooks this variable.
        precision = best_precision("cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else "cuda")
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=train.accumulation,
        step_scheduler_with_optimizer=False,
    )
