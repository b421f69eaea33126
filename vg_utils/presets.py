"""The presets: which values the settings have for a data set, and for a model on it.

`scenes` runs RefScenes on a laptop's processor in minutes, `refcocog` RefCOCOg on one GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vg_utils.config import (
    ClipConfig,
    ClipHRNetConfig,
    ClipRPNConfig,
    Config,
    ConfigError,
    DataConfig,
    DenseGrounderConfig,
    DetectorClipConfig,
    HRNetConfig,
    ModelConfig,
    PyramidConfig,
    TrainConfig,
    TransVGConfig,
    nearest,
    set_fields,
)


def random_init(config: Config) -> Config:
    """The same run with randomly initialised backbones, which then have to be trained in full."""
    model = replace(
        config.model,
        clip=replace(config.model.clip, weights="random", tuning="full", text_tuning="full"),
        hrnet=replace(config.model.hrnet, weights="random", tuning="full"),
    )
    return replace(config, model=model, train=replace(config.train, cached=False))


def _scenes() -> Config:
    """RefScenes on a laptop's processor: small backbones, small pictures, minutes."""
    return Config(
        preset="scenes",
        data=DataConfig(root="data/scenes", jitter=0.1),
        model=ModelConfig(
            image_size=128,
            clip=ClipConfig(name="scenes-rn", weights="shipped"),
            hrnet=HRNetConfig(name="scenes-hrnet", weights="shipped"),
            clip_hrnet=ClipHRNetConfig(
                clip_channels=64, hrnet_channels=64, fused_channels=192, hidden=256, box_loss="l1+giou"
            ),
            clip_rpn=ClipRPNConfig(channels=256, feed_forward=256),
            pyramid=PyramidConfig(channels=128),
            dense_grounder=DenseGrounderConfig(heads=4, feed_forward=256),
            transvg=TransVGConfig(channels=192, feed_forward=768),
            detector_clip=DetectorClipConfig(detector="oracle"),  # no detector has learned RefScenes yet
        ),
        train=TrainConfig(
            epochs=8, batch_images=32, lr=1e-3, cached=True, cache_views=1, similarity_images=12
        ),
    )


def _refcocog() -> Config:
    """RefCOCOg on one GPU: the CLIP + HRNet project's recipe. Not yet measured by its authors."""
    return Config(preset="refcocog", data=DataConfig(root="data/refcocog", workers=8))


def _photos() -> Config:
    """Photographs with phrases made from their boxes (`prepare phrases`), the package's own backbone."""
    return Config(
        preset="photos",
        data=DataConfig(
            root="data/photos", resident=True, workers=8, max_expressions=8, jitter=0.3, scale=(0.6, 1.6)
        ),
        model=ModelConfig(
            image_size=320,
            clip=ClipConfig(name="photos", weights="shipped", tuning="full", text_tuning="full"),
            hrnet=HRNetConfig(weights="random", tuning="full"),
            clip_rpn=ClipRPNConfig(attend_to="tokens", channels=256, feed_forward=512),
            pyramid=PyramidConfig(hrnet=False),
            detector_clip=DetectorClipConfig(detector="oracle"),
        ),
        train=TrainConfig(
            epochs=100,
            batch_images=64,
            lr=5e-4,
            backbone_lr=2e-4,
            text_lr=2e-5,
            weight_decay=0.02,
            grad_clip=1.0,
            ema=0.998,
            similarity_images=0,
        ),
    )


PRESETS = {"scenes": _scenes, "refcocog": _refcocog, "photos": _photos}

# What a model has other than its preset: (preset, model) -> dotted fields, as `set_fields` takes them.
_SECOND_SEED = {"train__optimizer": "adam", "train__lr": 2.7e-4, "train__weight_decay": 0.0}
# Not yet measured. All of ViT-B/16 and HRNet-W18 is fine-tuned at 384 pixels, where the smaller
# objects of RefCOCOg span several cells. By torch's count of its operations an epoch (21,899 pictures, 80,512
# phrases) is 8e15 of them: expect 60 epochs to take some 3 hours of a GPU that does 5e13 a second in practice
# (an A100, say) and 20 GB of its memory. With less memory halve `batch_images` and set `accumulation` to 2.
_FINE_TUNED = {
    "model__image_size": 384,
    "model__clip": ClipConfig(name="ViT-B-16-quickgelu", tuning="full", text_tuning="full"),
    "model__hrnet__tuning": "full",
    "model__pyramid__levels": (1, 2, 3, 4),
    "train__epochs": 60,
    "train__batch_images": 32,
    "train__lr": 2e-4,
    "train__backbone_lr": 5e-5,
    "train__layer_decay": 0.8,
    "train__weight_decay": 0.05,
    "train__ema": 0.9995,
}
OVERRIDES: dict[tuple[str, str], dict[str, Any]] = {
    ("scenes", "clip-hrnet"): {"train__lr": 2e-3},
    ("refcocog", "clip-rpn-concat"): _SECOND_SEED,
    ("refcocog", "clip-rpn-attention"): _SECOND_SEED,
    ("refcocog", "dense-grounder"): _FINE_TUNED,
    ("refcocog", "transvg"): _FINE_TUNED,
}


def preset(name: str, model: str = "clip-hrnet") -> Config:
    """The settings called `name` for the model called `model`.

    Raises:
        ConfigError: no such preset; the message names the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    return set_fields(PRESETS[name](), model__name=model, **OVERRIDES.get((name, model), {}))


def with_fast(config: Config) -> Config:
    """The same run on a budget of seconds, for tests and first looks: a few pictures, two epochs."""
    return replace(
        config,
        data=replace(config.data, limit_images=32, workers=0),
        train=replace(config.train, epochs=2, batch_images=8),
    )
