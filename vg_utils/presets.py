"""The presets: which values the settings have for a data set, and for a model on it.

`scenes` runs RefScenes on a laptop's processor in minutes, `refcocog` RefCOCOg on one GPU, `photos`
photographs with phrases made from their boxes. A recipe is a function, whose docstring says how it is run, on
what, how long that takes and what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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


def scenes() -> Config:
    """RefScenes with small frozen backbones, small images, features cached.

    Command: `python -m vg_utils train --preset scenes --model MODEL --out RUN_DIR`
    Hardware: two processor cores. Time and score of other models than `clip-hrnet`: not measured.
    """
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


def scenes_clip_hrnet() -> Config:
    """The main job: a head on frozen backbones, twice the rate of the others.

    Command: `python -m vg_utils run --preset scenes`
    Hardware: two processor cores. Time: 5 to 9 minutes, drawing, baselines and figures included; the head
    trains for one of them. Score: 0.516 mIoU on the test split of the RefScenes that the command draws.
    """
    return set_fields(scenes(), train__lr=2e-3)


def refcocog() -> Config:
    """RefCOCOg with frozen CLIP RN50 and HRNet-W18 at 224 pixels: the CLIP + HRNet project's design.

    Command: `python -m vg_utils train --preset refcocog --model clip-hrnet --out RUN_DIR --cached`
    Hardware: one GPU. Time: not measured; we guess at an hour for 20 epochs. Score: not measured.
    """
    return Config(preset="refcocog", data=DataConfig(root="data/refcocog", workers=8))


def refcocog_clip_rpn() -> Config:
    """The ClipRPN project's optimizer, for its two systems.

    Command: `python -m vg_utils train --preset refcocog --model clip-rpn-attention --out RUN_DIR --cached`
    Hardware: one GPU. Time and score: not measured.
    """
    return set_fields(refcocog(), train__optimizer="adam", train__lr=2.7e-4, train__weight_decay=0.0)


def refcocog_fine_tuned() -> Config:
    """All of ViT-B/16 and HRNet-W18 at 384 pixels, where the smaller objects of RefCOCOg span several cells.

    Command: `python -m vg_utils train --preset refcocog --model dense-grounder --out RUN_DIR`
    Hardware: one GPU with 24 GB; a step took 16 GiB of an H100's, and 12 GiB without HRNet, which is half of
    its time (`--model.pyramid.hrnet False`). With less, halve `batch_images` and set `accumulation` to 2.
    Time: not measured. By torch's count of its operations an epoch (21,899 images, 80,512 phrases) is 8e15 of
    them: expect 60 epochs to take some 3 hours of a GPU that does 5e13 a second in practice (an A100, say).
    Score: not measured.
    """
    return set_fields(
        refcocog(),
        model__image_size=384,
        model__clip=ClipConfig(name="ViT-B-16-quickgelu", tuning="full", text_tuning="full"),
        model__hrnet__tuning="full",
        model__pyramid__levels=(1, 2, 3, 4),
        train__epochs=60,
        train__batch_images=32,
        train__lr=2e-4,
        train__backbone_lr=5e-5,
        train__layer_decay=0.8,
        train__weight_decay=0.05,
        train__ema=0.9995,
    )


def photos() -> Config:
    """Photographs with phrases made from their boxes (`prepare phrases`), the package's own backbone.

    Command: `python -m vg_utils train --preset photos --model dense-grounder --out RUN_DIR`
    Hardware: an H200, of whose memory it took 30 GB. Time: 400 images a second; with collages among them
    (`prepare phrases --collages 4000`) it took 3.3 minutes. Score then: an Acc@0.5 of 0.678 on made phrases
    of val (`experiments.photo_collages`). Longer trainings, people's phrases: RESULTS.md, "On photographs".
    """
    return Config(
        preset="photos",
        data=DataConfig(
            root="data/photos", resident=True, workers=8, max_expressions=8, jitter=0.3, scale=(0.6, 1.6)
        ),
        model=ModelConfig(
            image_size=320,
            clip=ClipConfig(name="photos", weights="shipped", tuning="full", text_tuning="norms"),
            hrnet=HRNetConfig(weights="random", tuning="full"),
            clip_rpn=ClipRPNConfig(attend_to="tokens", channels=256, feed_forward=512),
            pyramid=PyramidConfig(hrnet=False, channels=224),
            dense_grounder=DenseGrounderConfig(heads=7, agreement=0.3, refinements=2),
            detector_clip=DetectorClipConfig(detector="oracle"),
        ),
        train=TrainConfig(
            epochs=30,
            batch_images=64,
            lr=5e-4,
            backbone_lr=2e-4,
            text_lr=2e-4,
            weight_decay=0.02,
            grad_clip=1.0,
            ema=0.998,
            similarity_images=0,
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {"scenes": scenes, "refcocog": refcocog, "photos": photos}
OWN_RECIPES: dict[
    tuple[str, str], Callable[[], Config]
] = {  # of models that have another than their preset's
    ("scenes", "clip-hrnet"): scenes_clip_hrnet,
    ("refcocog", "clip-rpn-concat"): refcocog_clip_rpn,
    ("refcocog", "clip-rpn-attention"): refcocog_clip_rpn,
    ("refcocog", "dense-grounder"): refcocog_fine_tuned,
    ("refcocog", "transvg"): refcocog_fine_tuned,
}


def preset(name: str, model: str = "clip-hrnet") -> Config:
    """The settings called `name` for the model called `model`.

    Raises:
        ConfigError: no such preset; the message names the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    recipe = OWN_RECIPES.get((name, model), PRESETS[name])
    return set_fields(recipe(), model__name=model)


def random_init(config: Config) -> Config:
    """The same run with randomly initialised backbones, which then have to be trained in full."""
    model = replace(
        config.model,
        clip=replace(config.model.clip, weights="random", tuning="full", text_tuning="full"),
        hrnet=replace(config.model.hrnet, weights="random", tuning="full"),
    )
    return replace(config, model=model, train=replace(config.train, cached=False))


def with_fast(config: Config) -> Config:
    """The same run on a budget of seconds, for tests and first looks: a few images, two epochs."""
    return replace(
        config,
        data=replace(config.data, limit_images=32, workers=0),
        train=replace(config.train, epochs=2, batch_images=8),
    )
