"""Which numbers a GPU computes in: one decision, for training and for inference."""

from __future__ import annotations

from typing import Literal

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


def best_precision(device: torch.device | str = "cuda") -> Literal["bf16", "fp16", "no"]:
    """bf16 where the GPU computes in it, fp16 on older GPUs, float32 on a processor.

    `torch.cuda.is_bf16_supported()` alone says yes on a T4, a P100 and a V100, which emulate bfloat16 and
    have no convolutions in it.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def inference_dtype(device: torch.device | str) -> torch.dtype:
    """What `best_precision` is as a type of tensors."""
    return DTYPES[best_precision(device)]


def autocast(device: torch.device | str) -> torch.autocast:
    """Inference in the best precision of a GPU, in float32 elsewhere."""
    device, dtype = torch.device(device), inference_dtype(device)
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)
