"""What the benchmarks work on: images, expressions and models, the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vg_utils.config import Config
from vg_utils.data.batches import GroundingDataset, collate
from vg_utils.data.examples import Expression, GroundingExample
from vg_utils.data.transforms import EvalTransform
from vg_utils.models.base import GroundingModel
from vg_utils.presets import preset
from vg_utils.refscenes.scenes import make_scenes

GRAIN = 13  # grey levels: with it the files are as large as COCO's photographs, 150 KB on average
JPEG_QUALITY = 90
EXPRESSIONS = 3.7  # an image, in RefCOCOg's training set


def photographs(folder: Path, count: int, size_wh: tuple[int, int] = (640, 480)) -> list[GroundingExample]:
    """RefScenes as JPEG files of a photograph's size and grain, with all their expressions."""
    start = typical_start(count)
    pictures, scenes = make_scenes("train", start, count, size=320, device="cpu")
    noise = np.random.default_rng(0)
    scale_x, scale_y = size_wh[0] / 320, size_wh[1] / 320
    examples = []
    for number, (picture, scene) in enumerate(zip(pictures, scenes, strict=True)):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(size_wh, Image.Resampling.BICUBIC)
        pixels = np.asarray(image) + noise.normal(0, GRAIN, (size_wh[1], size_wh[0], 3))
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path, quality=JPEG_QUALITY)
        expressions = []
        for ref in scene["refs"]:
            x, y, width, height = scene["objects"][ref["object"]]["box_xywh"]
            box = (x * scale_x, y * scale_y, (x + width) * scale_x, (y + height) * scale_y)
            for sentence in ref["sentences"]:
                expressions.append(Expression(sentence["text"], box, 100 * number + len(expressions), number))
        examples.append(GroundingExample(path, number, expressions, size_wh))
    return examples


@cache
def typical_start(count: int, among: int = 64) -> int:
    """Where to start so that `count` scenes in a row have RefCOCOg's mean number of expressions."""
    _, scenes = make_scenes("train", 0, count + among, size=32, device="cpu", draw=False)
    numbers = [sum(len(ref["sentences"]) for ref in scene["refs"]) for scene in scenes]
    return min(range(among), key=lambda i: abs(sum(numbers[i : i + count]) - EXPRESSIONS * count))


def one_by_one(examples: Sequence[GroundingExample]) -> list[GroundingExample]:
    """The same pairs with an image for each expression: how a data set looks to most published code."""
    return [replace(example, expressions=[e]) for example in examples for e in example.expressions]


def untrained(model: str, full: bool, tuning: str = "frozen") -> Config:
    """The `scenes` preset, or `refcocog`'s full size, with random weights: speed does not depend on them."""
    config = preset("refcocog" if full else "scenes", model)
    clip = replace(config.model.clip, weights="random", tuning=tuning, text_tuning=tuning)
    hrnet = replace(config.model.hrnet, weights="random", tuning=tuning)
    return replace(config, model=replace(config.model, clip=clip, hrnet=hrnet))


def enliven(model: GroundingModel, examples: Sequence[GroundingExample], size: int) -> None:
    """Let BatchNorm see these images: with random weights and no statistics all boxes are alike."""
    dataset = GroundingDataset(examples, EvalTransform(size))
    batch = collate([dataset[i] for i in range(len(dataset))], model.tokenizer)
    device = next(model.parameters()).device
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # of this batch alone
            module.train()
    with torch.no_grad():
        model.predict(batch.images.to(device), batch.tokens.to(device), batch.image_index.to(device))


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Between two tensors of the same shape."""
    if one.shape != other.shape:
        raise RuntimeError(f"the variants do different work: {tuple(one.shape)} and {tuple(other.shape)}")
    return (one.float() - other.float()).abs().max().item()
