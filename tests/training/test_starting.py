"""A training that starts from another's weights, and what a training says at its end."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import copy_of
from vg_utils.config import Config, ConfigError, set_fields
from vg_utils.evaluation.runs import evaluate, evaluate_constant
from vg_utils.models import build_model
from vg_utils.models.checkpoints import CheckpointError, load_model
from vg_utils.predictor import Grounder
from vg_utils.training.engine import fit
from vg_utils.training.loaders import load_split
from vg_utils.training.starting import start_model, take_over


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_scenes):
    """A run of one epoch, its backbones trained as well."""
    from vg_utils.presets import preset

    out = tmp_path_factory.mktemp("runs") / "first"
    settings = {"train__epochs": 1, "train__cached": False, "train__batch_images": 3, "data__limit_images": 8}
    settings |= {"train__similarity_images": 0, "data__root": str(tiny_scenes), "data__workers": 0}
    settings |= {"model__image_size": 64, "model__clip__tuning": "last", "train__backbone_lr": 1e-3}
    fit(set_fields(preset("scenes"), **settings), out, progress=False)
    return out


def test_the_same_model_starts_where_the_other_ended(trained):
    first, config = load_model(trained)
    model, said = start_model(set_fields(config, train__init=str(trained)))
    for name, value in first.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert "100.0% of the numbers" in said
    assert "not there" not in said


def test_what_fits_is_taken_over_and_the_rest_is_named(trained):
    first, config = load_model(trained)
    wider = set_fields(config, model__clip_hrnet__hidden=config.model.clip_hrnet.hidden * 2)
    model, said = start_model(set_fields(wider, train__init=str(trained)))
    given, own = first.state_dict(), model.state_dict()
    other_shape = [name for name in own if own[name].shape != given[name].shape]
    assert other_shape
    assert f"{len(other_shape)} of another shape there ({other_shape[0]} (" in said
    fresh = build_model(wider.model.name, wider.model).state_dict()
    for name, value in own.items():
        if name not in other_shape:
            assert torch.equal(value, given[name]), name
    assert any(not torch.equal(fresh[n], own[n]) for n in own if n not in other_shape), "it tells them apart"


def test_frozen_backbones_stay_those_that_the_new_run_can_load_again(trained, tmp_path):
    _, config = load_model(trained)
    frozen = set_fields(config, model__clip__tuning="frozen", train__init=str(trained))
    model, said = start_model(frozen)
    own = build_model(frozen.model.name, frozen.model)
    assert all(torch.equal(model.clip.state_dict()[n], v) for n, v in own.clip.state_dict().items())
    assert "frozen ones stay" in said
    fit(frozen, tmp_path / "run", progress=False)
    Grounder.load(tmp_path / "run")


def test_a_checkpoint_of_which_nothing_fits_is_refused(trained, tmp_path):
    _, config = load_model(trained)
    other = set_fields(config, model__name="transvg", model__clip__tuning="frozen", train__init=str(trained))
    with pytest.raises(ConfigError, match=r"train\.init: .*found none"):
        fit(other, tmp_path / "run")
    with pytest.raises(CheckpointError, match="nowhere"):
        fit(set_fields(config, train__init="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_taking_over_changes_no_model_that_is_refused():
    model = torch.nn.Linear(2, 2)
    model.backbones = dict
    before = copy_of(model)
    with pytest.raises(ConfigError):
        take_over(model, {"weight": torch.zeros(3, 2), "other": torch.zeros(2)})
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_training_says_what_came_of_it(tiny_config: Config, tmp_path, capsys):
    out = tmp_path / "run"
    history = fit(tiny_config, out, progress=False, closing=True)
    said = capsys.readouterr().out
    train, val = (load_split(tiny_config, split) for split in ("train", "val"))
    best = max(history, key=lambda epoch: epoch["val_miou"])
    blind = evaluate_constant(train, val, "", "val").results["miou"]
    scored = evaluate(Grounder.load(out), val, "", "val", similarity=False).results["miou"]
    assert scored == pytest.approx(best["val_miou"], abs=1e-4)
    phrases = sum(len(example.expressions) for example in val)
    for text in (
        f"best epoch: {best['epoch']} of 2",
        f"{phrases} phrases about {len(val)} images",
        f"this model      mIoU {best['val_miou']:.3f}",
        f"one box for all mIoU {blind:.3f}",
        f"weights: {out / 'checkpoint' / 'model.safetensors'}",
        f"evaluate {out} --data {tiny_config.data.root} --split test",
    ):
        assert text in said
