"""What is trained: every run of the study, and of the search for its settings, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from experiments.detector import ARCHITECTURE, CLASSES
from vg_utils.config import BOX_LOSSES, Config, set_fields
from vg_utils.data import GroundingExample
from vg_utils.presets import preset

SIZE = 224  # side of the images and of the model's square
CURVE = (1_500, 5_000, 15_000)  # training images of the learning curve, beside all of them
SYSTEMS = {  # name of a run: model, and what it has other than the preset
    "clip-hrnet": ("clip-hrnet", {}),
    "clip-rpn-concat": ("clip-rpn-concat", {}),
    "clip-rpn-pooled": ("clip-rpn-attention", {}),
    "clip-rpn-tokens": ("clip-rpn-attention", {"model__clip_rpn__attend_to": "tokens"}),
    "transvg": ("transvg", {}),
    "dense-grounder": ("dense-grounder", {}),
}
SETTINGS = {  # of a model, where those of the recipe are not the best that `search` found
    "dense-grounder": {"train__batch_images": 128},
    "transvg": {"train__batch_images": 128, "train__lr": 3e-4},
    "clip-rpn-attention": {"train__lr": 2e-3},
    "clip-rpn-concat": {"train__lr": 2e-3},  # as its sibling's; not searched
}
PICTURES_PER_SECOND = {  # that a model trains on where two runs share an H200: makes minutes of images
    "dense-grounder": 710,
    "transvg": 640,
    "clip-hrnet": 1_910,
    "clip-rpn-concat": 2_870,
    "clip-rpn-attention": 2_620,
    "text-only": 4_500,
}
RECOLOR = {"data__recolor": 0.25}  # of all models, because of what `search` found for one
SHIPPED = {"dense-grounder": "long-dense-grounder"}  # name of a checkpoint of the package: the run it is of
MODES = ("crop", "crop+blur", "global-local")  # of detector-clip
FROZEN = {"model__clip__tuning": "frozen", "model__clip__text_tuning": "frozen"}
FROZEN |= {"model__hrnet__tuning": "frozen"}
ABLATIONS = {  # label: the one change
    "one feature level": {"model__pyramid__levels": (3,)},
    "no HRNet branch": {"model__pyramid__hrnet": False},
    "no cell-in-box loss": {"model__dense_grounder__heatmap_weight": 0.0},
    "no boxes of single cells": {"model__dense_grounder__cell_weight": 0.0},
    "pooled text only": {"model__dense_grounder__words": False},
    "no coordinates": {"model__dense_grounder__coordinates": False},
    "one conditioned block": {"model__dense_grounder__blocks": 1},
    "no images in other colours": {"data__recolor": 0.0},
    "frozen backbones": FROZEN,
}
SEARCHED = {  # changes that a system is tried with in a search
    "dense-grounder": (
        {},
        {"train__lr": 2e-3},
        {"train__lr": 5e-4},
        {"train__backbone_lr": 1e-3},
        {"train__batch_images": 128},
        {"data__recolor": 0.25},
    ),
    "transvg": ({}, {"train__lr": 3e-4}, {"train__lr": 3e-4, "train__batch_images": 128}),
    "clip-rpn-tokens": ({}, {"train__lr": 2e-3}, {"train__batch_images": 128}),
    "clip-hrnet": (
        {},
        {"train__lr": 2e-3},
        {"train__backbone_lr": 1e-3},
        {"train__batch_images": 128},
    ),
}
EQUAL = ("dense-grounder", "clip-rpn-tokens", "clip-hrnet")
LOSSES = tuple(loss for loss in BOX_LOSSES if "+" not in loss)
LONG = 2.4  # times the minutes of a system, for the flagship that is shipped
SHARE = 0.35  # of a system's minutes, for what is compared with other runs of that share


@dataclass(frozen=True)
class Run:
    """A system as it is trained.

    Attributes:
        name: of its directory.
        group: table it belongs to.
        label: what it is called there.
        config: its settings; `epochs` and `epoch_images` follow from the minutes that a system gets.
        seeds: how many times it is trained.
        share: of the images that a system sees.
        images: training images; 0 for all.
        shuffle: every phrase in the place of another one, in training and in test.
        similarity: whether CLIP compares its crops.
        of: name of the run whose checkpoint it is, where it is not trained but shipped.
        probed: whether its own speed, not the plan's, says how many images fill its minutes.
    """

    name: str
    group: str
    label: str
    config: Config
    seeds: int = 1
    share: float = 1.0
    images: int = 0
    shuffle: bool = False
    similarity: bool = False
    of: str = ""
    probed: bool = False


def recipe(model: str, **changes: Any) -> Config:
    """How a system is trained here: fine-tuned in full from the small backbones."""
    return basic(model, **RECOLOR | SETTINGS.get(model, {}) | changes)


def basic(model: str, **changes: Any) -> Config:
    """The same before anything was searched."""
    usual = {
        "data__resident": True,
        "model__image_size": SIZE,
        "model__clip__tuning": "full",
        "model__clip__text_tuning": "full",
        "model__hrnet__tuning": "full",
        "train__cached": False,
        "train__cache_views": 1,
        "train__batch_images": 256,
        "train__epoch_images": 20_000,
        "train__lr": 1e-3,
        "train__backbone_lr": 3e-4,
        "train__weight_decay": 0.02,
        "train__ema": 0.99,
        "train__similarity_images": 0,
    }
    # Few passes over many images: nothing is learned by heart that dropout would have to prevent.
    usual |= {
        f"model__{head}__dropout": 0.0 for head in ("clip_hrnet", "clip_rpn", "dense_grounder", "transvg")
    }
    return set_fields(preset("scenes", model), **usual | changes)


def study(detector: str = "runs/detector.pt") -> list[Run]:
    """All runs, the most telling ones first; `detector` is the file of one trained on RefScenes."""
    label = "dense-grounder, trained longer"  # begun first, so that at the end nobody waits for it
    runs = [Run("long-dense-grounder", "long", label, recipe("dense-grounder"), share=LONG)]
    runs += [
        Run(name, "systems", name, recipe(model, **changes), seeds=3, similarity=True)
        for name, (model, changes) in reversed(SYSTEMS.items())
    ]
    shuffle = recipe("dense-grounder", data__absent=0)
    short = {"share": SHARE}
    label = "dense-grounder, phrases shuffled"
    runs.append(Run("shuffled", "blind", label, shuffle, shuffle=True, **short))
    runs.append(Run("text-only", "blind", "text-only", recipe("text-only"), **short))
    runs.append(Run("ablation-none", "ablation", "unchanged", recipe("dense-grounder"), **short))
    for label, changes in ABLATIONS.items():
        name = "ablation-" + label.replace(" ", "-")
        runs.append(Run(name, "ablation", label, recipe("dense-grounder", **changes), **short))
    for name, (model, changes) in SYSTEMS.items():
        config = recipe(model, **changes | FROZEN)
        runs.append(Run(f"frozen-{name}", "frozen", name, config, similarity=True, **short))
    for images in CURVE:  # as long as the systems, which are the ends of the curves
        for name in ("dense-grounder", "clip-hrnet"):
            config = recipe(SYSTEMS[name][0])
            runs.append(Run(f"curve-{name}-{images}", "curve", name, config, images=images))
    for name, source in SHIPPED.items():
        model, changes = SYSTEMS[name]
        config = recipe(model, **changes)
        runs.append(Run(f"shipped-{name}", "shipped", f"scenes/{name}", config, of=source, similarity=True))
    for loss in LOSSES:
        config = recipe("dense-grounder", model__dense_grounder__box_loss=loss)
        runs.append(Run(f"loss-{loss}", "loss", loss, config, **short))
    runs.append(Run("constant-box", "blind", "constant box", recipe("constant-box")))
    return (
        runs
        + training_free(recipe("detector-clip"))
        + training_free(
            recipe(
                "detector-clip",
                model__detector_clip__detector=ARCHITECTURE,
                model__detector_clip__weights=detector,
                model__detector_clip__num_classes=CLASSES,
            )
        )
    )


def equal() -> list[Run]:
    """The flagship and the best system of each student project, for as many minutes."""
    return [
        Run(f"equal-{name}", "systems", name, recipe(SYSTEMS[name][0], **SYSTEMS[name][1]), probed=True)
        for name in EQUAL
    ]


def search() -> list[Run]:
    """Short trainings that say which settings a system is trained with in the study: see `SETTINGS`."""
    runs = []
    for name, tried in SEARCHED.items():
        for changes in tried:
            model, usual = SYSTEMS[name]
            said = [f"{key.split('__')[-1]} {value:g}" for key, value in changes.items()] or ["unchanged"]
            label = ", ".join([name, *said])
            config = basic(model, **usual | changes)
            runs.append(Run(f"search-{label}".replace(", ", "-").replace(" ", "-"), "search", label, config))
    return runs


def training_free(config: Config) -> list[Run]:
    """`detector-clip` in its modes, and in the last one without the rules for words of place."""
    source = "oracle" if config.model.detector_clip.detector == "oracle" else "detector"
    runs = []
    for mode, prior in (*((mode, True) for mode in MODES), (MODES[-1], False)):
        changed = set_fields(
            config, model__detector_clip__mode=mode, model__detector_clip__spatial_prior=prior
        )
        label = f"{source} proposals, {mode}{'' if prior else ', no spatial prior'}"
        name = f"{source}-{mode.replace('+', '-')}{'' if prior else '-no-prior'}"
        runs.append(Run(name, "training-free", label, changed))
    return runs


def shuffled(examples: Sequence[GroundingExample], seed: int = 0) -> list[GroundingExample]:
    """The examples with every phrase in the place of another one: what is left is what images give away."""
    texts = [expression.text for example in examples for expression in example.expressions]
    Random(seed).shuffle(texts)
    fresh = iter(texts)
    return [
        replace(example, expressions=tuple(e._replace(text=next(fresh)) for e in example.expressions))
        for example in examples
    ]
