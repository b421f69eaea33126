"""The spaces of a search: each gives valid configs, holds the preset, and leaves the feature cache alone."""

import json
from collections import Counter
from dataclasses import fields, is_dataclass

import optuna
import pytest

from vg_utils.config import Config, ConfigError, ModelConfig, set_fields
from vg_utils.models import MODELS, build_model
from vg_utils.presets import preset
from vg_utils.tuning import search as tuning
from vg_utils.tuning.search import tune
from vg_utils.tuning.spaces import SPACES, own_parameters, suggest

CACHED_FEATURES = ("model.clip", "model.hrnet.", "data.", "model.image_size", "attend_to", "words", "levels")


def drawn(config: Config, n: int = 25) -> list[optuna.Trial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(n)]


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("preset_name", ["scenes", "refcocog"])
@pytest.mark.parametrize("cached", [True, False])
def test_every_space_gives_configs_and_holds_the_preset(name, preset_name, cached):
    base = set_fields(preset(preset_name, name), train__cached=cached)
    own = own_parameters(base)
    assert suggest(base, optuna.trial.FixedTrial(own)) == base
    trials = drawn(base)
    configs = {json.dumps(tuning.plain(suggest(base, trial)), sort_keys=True) for trial in trials}
    assert len(configs) == len(trials)
    searched = {parameter for trial in trials for parameter in trial.params}
    assert {"train.lr", "train.warmup"} <= searched
    assert ("model.clip.tuning" in searched) == (not cached)
    if cached:
        assert not [p for p in searched if p.startswith(CACHED_FEATURES) and "clip_" not in p]


@pytest.mark.parametrize("name", ["clip-hrnet", "clip-rpn-concat", "clip-rpn-attention"])
def test_what_a_space_gives_can_be_built(name):
    base = preset("scenes", name)
    for trial in drawn(base, 3):
        build_model(name, suggest(base, trial).model)


def test_choices_that_depend_on_others():
    base = set_fields(preset("scenes"), train__cached=False)
    kinds = Counter()
    for trial in drawn(base, 60):
        suggest(base, trial)
        chosen = trial.params
        assert ("model.clip_hrnet.huber_delta" in chosen) == (chosen["model.clip_hrnet.box_loss"] == "huber")
        modes = {chosen[f"model.{part}"] for part in ("clip.tuning", "clip.text_tuning", "hrnet.tuning")}
        assert ("train.backbone_lr" in chosen) == (modes != {"frozen"})
        assert ("model.clip.lora_rank" in chosen) == ("lora" in modes)
        kinds[chosen["model.clip_hrnet.box_loss"]] += 1
    assert len(kinds) > 3


def test_a_range_is_widened_to_the_runs_own_value():
    base = set_fields(preset("scenes"), train__lr=0.5, model__clip_hrnet__hidden=100)
    own = own_parameters(base)
    assert (own["train.lr"], own["model.clip_hrnet.hidden"]) == (0.5, 100)
    trial = drawn(base, 1)[0]
    suggest(base, trial)
    assert trial.distributions["train.lr"].high == 0.5
    assert 100 in trial.distributions["model.clip_hrnet.hidden"].choices


ODD = {  # values that no range of any space holds
    "train__lr": 0.3, "train__warmup": 0.9, "train__weight_decay": 0.9, "train__ema": 0.5,
    "train__backbone_lr": 0.1, "train__layer_decay": 0.1, "model__pyramid__channels": 40,
    "model__clip_hrnet__dropout": 0.9, "model__clip_hrnet__box_weight": 70.0,
    "model__clip_rpn__objectness_weight": 50.0, "model__dense_grounder__blocks": 9,
    "model__dense_grounder__presence_weight": 9.0, "model__transvg__layers": 12,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["odd", "zero"])
def test_the_first_trial_is_the_run_without_a_search_whatever_its_settings(name, cached, kind):
    """The report retrains that run and calls it the preset: it has to be what the search began with."""
    base = set_fields(preset("scenes", name), train__cached=cached, model__clip__tuning="last")
    values = (
        ODD if kind == "odd" else {key: 0 if isinstance(value, int) else 0.0 for key, value in ODD.items()}
    )
    if kind == "zero":
        del values["model__pyramid__channels"]
    base = set_fields(base, **values)
    own = own_parameters(base)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(own)
    first, other = study.ask(), study.ask()
    assert suggest(base, first) == base
    assert first.params == own
    assert suggest(base, other) != base
    assert suggest(base, optuna.trial.FixedTrial(other.params)) == suggest(base, other)


def test_what_is_switched_off_stays_off():
    base = set_fields(preset("scenes"), train__weight_decay=0.0)
    for trial in drawn(base, 5):
        assert suggest(base, trial).train.weight_decay == 0
        assert "train.weight_decay" not in trial.params


def test_a_model_without_a_space(tmp_path):
    with pytest.raises(ConfigError, match="no search space for model 'clip-hrnett', did you mean"):
        tune(set_fields(preset("scenes"), model__name="clip-hrnett"), "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_model_that_trains_has_a_space():
    assert set(SPACES) >= set(MODELS) - {"text-only"}


@pytest.mark.parametrize("name", MODELS)
def test_models_read_the_parts_that_are_said_to_be_theirs(name):
    """A study is joined although settings of parts that its model does not read differ."""
    read = set()

    class Watched:
        def __getattr__(self, part: str):
            read.add(part)
            return getattr(preset("scenes", name).model, part)

    build_model(name, Watched())
    parts = {f.name for f in fields(ModelConfig) if is_dataclass(getattr(ModelConfig(), f.name))}
    assert read & parts == {"clip", *MODELS[name].parts}
