"""For all tests: no network, one torch thread a process (`make test` runs a process on each core), those
that tests start included. And a tiny RefScenes with settings to train on it in a second."""

from __future__ import annotations

import gc
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported: not in this file

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.forks import Forks
from vg_utils.config import Config, set_fields
from vg_utils.presets import preset

if TYPE_CHECKING:
    from vg_utils.models.base import GroundingModel

# With it jsonschema, which checks notebooks, builds a grammar of addresses, which takes two seconds.
sys.modules["rfc3987_syntax"] = None

TINY_SIZE = 64  # side of the images, and of the model's square


def pytest_configure():
    """Until all is imported there is no garbage, and looking for it takes a second."""
    gc.disable()


def pytest_collection_finish():
    """The million objects that torch and timm are made of stay to the end, and are looked through no more."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """The slow ones come first: the last ones are quick, so the processes end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Optuna's journal waits for it after each line, for a power cut that no test is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def backbones_are_built_once():
    """See `tests.copies`. Where no test has imported CLIP, none waits for it here."""
    if "vg_utils.models.clip" not in sys.modules:
        yield
        return
    from tests.copies import built_once
    from vg_utils.models import clip, hrnet

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "load_clip", built_once(clip.load_clip))
        patch.setattr(hrnet, "load_hrnet", built_once(hrnet.load_hrnet))
        yield


@pytest.fixture(scope="session", autouse=True)
def figures_have_few_pixels():
    """Most of the time that a figure takes goes into its pixels, which few tests look at."""
    if "vg_utils.figures.style" not in sys.modules:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vg_utils.figures.style.DPI", (50,))
        yield


@pytest.fixture(scope="session", autouse=True)
def forks(backbones_are_built_once, figures_have_few_pixels) -> Forks:
    """Runs functions in processes of their own, see `tests.forks`; made before anything has run."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory) -> Path:
    """RefScenes with 20 images of train and 4 of each other split, in RefCOCOg's layout."""
    from vg_utils.refscenes.scenes import write_scenes

    return write_scenes(tmp_path_factory.mktemp("scenes"), 20, TINY_SIZE, device="cpu", progress=False)


@pytest.fixture(scope="session")
def untrained() -> Callable[[str], GroundingModel]:
    """Models of the preset `scenes` by name, each built once: whoever changes one changes a copy."""
    import torch

    from vg_utils.models import build_model

    @cache
    def build(name: str) -> GroundingModel:
        torch.manual_seed(0)
        return build_model(name, set_fields(preset("scenes"), model__image_size=TINY_SIZE).model)

    return build


@pytest.fixture
def warnings_are_errors():
    """Matplotlib warns of missing glyphs and of layouts that failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", "'.*' deprecated - use", UserWarning
        )  # pyparsing, of older matplotlibs
        yield


@pytest.fixture
def tiny_config(tiny_scenes, tmp_path) -> Config:
    """Two epochs of `clip-hrnet` with the shipped backbones on 8 of its images: 3 batches, the last short.

    The cache of features is the test's own; `vg_utils.config.set_fields` makes other settings of it.
    """
    config = preset("scenes")
    return replace(
        config,
        data=replace(
            config.data,
            root=str(tiny_scenes),
            workers=0,
            features=str(tmp_path / "features"),
            limit_images=8,
        ),
        model=replace(config.model, image_size=TINY_SIZE),
        train=replace(
            config.train, epochs=2, batch_images=3, cached=False, cache_views=2, similarity_images=2
        ),
    )
