"""What the tests of training, features, checkpoints and the predictor share."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vg_utils.data import Expression, GroundingExample
from vg_utils.models.clip import ClipTokenizer

TOKENIZER = ClipTokenizer()
CLOCKS = ("seconds", "pairs_per_second")  # of a history: no two runs agree on them


def without_clocks(history: list[dict]) -> list[dict]:
    return [{name: v for name, v in epoch.items() if name not in CLOCKS} for epoch in history]


def weights_of(run_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoint" / f"{name}.safetensors")


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed_names(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    """Names of the weights and buffers that are not the same to the bit."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def wide_example(image: Image.Image | Path | None = None, image_id: int = 7) -> GroundingExample:
    """An image of 120 x 50 with three expressions on two objects."""
    image = image or Image.effect_noise((120, 50), 60).convert("RGB")
    expressions = (
        Expression("the red cube", (10.0, 5.0, 50.0, 45.0), image_id * 10, 1, "cube", "attribute", 0),
        Expression("the cube on the left", (10.0, 5.0, 50.0, 45.0), image_id * 10 + 1, 1, "cube", "place", 0),
        Expression("the sphere", (80.0, 10.5, 119.0, 30.0), image_id * 10 + 2, 2, "sphere", "attribute", 1),
    )
    return GroundingExample(image, image_id, expressions, (120, 50))
