"""What the tests of `dense-grounder` and `transvg` share: small ones, their batches and their training."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import torch
from torch import nn

from tests.tiny import TOKENIZER
from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import Config, TrainConfig, set_fields
from vg_utils.data.batches import Batch, GroundingDataset, collate
from vg_utils.data.examples import GroundingExample
from vg_utils.data.transforms import EvalTransform
from vg_utils.models import build_model
from vg_utils.models.base import Features, GroundingModel
from vg_utils.presets import preset
from vg_utils.training.optim import make_optimizer, make_scheduler

NAMES = ("dense-grounder", "transvg")
SIZE = 64
SMALL = {
    "model__image_size": SIZE,
    "model__pyramid__channels": 32,
    "model__dense_grounder__blocks": 2,
    "model__dense_grounder__heads": 4,
    "model__dense_grounder__feed_forward": 48,
    "model__transvg__channels": 32,
    "model__transvg__heads": 4,
    "model__transvg__layers": 2,
    "model__transvg__feed_forward": 48,
}
TINY_VIT = {  # open_clip's own classes, smaller than any that it names
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 8, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


TINY_RN = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def small_config(name: str, **changes) -> Config:
    """The preset `scenes` with shipped frozen backbones and a small head."""
    return set_fields(preset("scenes", name), **SMALL | changes)


def build_small(name: str, **changes) -> GroundingModel:
    torch.manual_seed(0)
    return build_model(name, small_config(name, **changes).model)


def tiny_vit(monkeypatch) -> str:
    """The name of a CLIP with a tiny ViT of 48 pixels and 8 blocks, known to open_clip for this test."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", TINY_VIT)
    return "tiny-vit"


def tiny_rn(monkeypatch) -> str:
    """The name of a CLIP with a tiny ResNet and a text encoder of one block, known likewise."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-rn", TINY_RN)
    return "tiny-rn"


def batch_of(examples: list[GroundingExample], absent: int | None = None, size: int = SIZE) -> Batch:
    """One batch of all the examples, plain, with all or so many of their absent phrases."""
    dataset = GroundingDataset(examples, EvalTransform(size), absent=absent)
    return collate([dataset[i] for i in range(len(examples))], TOKENIZER)


def weighted_loss(model: GroundingModel, outputs: Features, targets: torch.Tensor) -> torch.Tensor:
    losses = model.losses(outputs, targets)
    assert losses.keys() == model.loss_weights.keys()
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    return sum(weight * losses[name] for name, weight in model.loss_weights.items())


def without_gradient(model: nn.Module) -> set[str]:
    """Names of what would train and was not reached: DistributedDataParallel would wait for it for ever."""
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


def overfit(model: GroundingModel, batch: Batch, steps: int, lr: float) -> Features:
    """Train the head on one batch; returns the outputs in evaluation mode."""
    train = replace(TrainConfig(), lr=lr, weight_decay=0.0)
    optimizer = make_optimizer(model, train)
    scheduler = make_scheduler(optimizer, train, steps)
    model.train()
    with torch.no_grad():  # frozen: once is enough
        features = model.encode_images(batch.images), model.encode_texts(batch.tokens)
    for _ in range(steps):
        optimizer.zero_grad()
        weighted_loss(model, model(*features, batch.image_index), batch.target_boxes_cxcywh).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    model.eval()
    with torch.no_grad():
        return model(*features, batch.image_index)


def miou(outputs: Features, batch: Batch) -> float:
    """Mean IoU over the phrases that have a box."""
    there = batch.target_boxes_cxcywh[:, 2] > 0
    iou = paired_iou(to_xyxy(outputs["boxes_cxcywh"]), to_xyxy(batch.target_boxes_cxcywh))
    return iou[there].mean().item()
