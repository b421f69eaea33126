"""What a trained run costs, beside what it scores."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from vg_utils.predictor import Grounder

SECOND_OBJECTIVES = ("latency", "parameters")
PHRASE = "the small red cube left of the green one"  # of the latency, which hardly depends on it


def second_objective(name: str, run_dir: Path) -> float:
    """What a trained run costs: "parameters" of the whole model in millions, or "latency".

    The latency is that of one image and one phrase through the whole model: the median of 20, in
    milliseconds. It is measured, so the same trial gives another number each time.
    """
    grounder = Grounder.load(run_dir)
    model, size = grounder.model, grounder.config.model.image_size
    if name == "parameters":
        return sum(parameter.numel() for parameter in model.parameters()) / 1e6
    picture = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=grounder.device)
    tokens = model.tokenizer([PHRASE]).to(grounder.device)
    index = torch.zeros(1, dtype=torch.int64, device=grounder.device)
    seconds = []
    with torch.inference_mode():
        for _ in range(23):
            started = time.perf_counter()
            model.predict(picture, tokens, index)["score"].item()  # .item() waits for a GPU
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[3:])) * 1e3  # the first ones find buffers and kernels
