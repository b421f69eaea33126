"""Settings: written and read back, refused where they are wrong, and the presets."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import replace

import pytest

from vg_utils.config import (
    ClipRPNConfig,
    Config,
    ConfigError,
    DataConfig,
    DetectorClipConfig,
    ModelConfig,
    nearest,
    set_fields,
)
from vg_utils.presets import OWN_RECIPES, PRESETS, preset, random_init, with_fast


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_saved_is_what_is_loaded(tmp_path, name):
    config = preset(name, "clip-rpn-attention")
    config = replace(
        config,
        data=replace(config.data, scale=(0.5, 2.0), root="elsewhere/ünïcode"),
        train=replace(config.train, lr=3e-5, cached=not config.train.cached),
    )
    path = tmp_path / "config.json"
    config.save(path)
    loaded = Config.load(path)
    assert loaded == config
    assert hash(loaded) == hash(config)  # tuples have come back as tuples
    assert loaded.model.clip_rpn.anchor_sizes == config.model.clip_rpn.anchor_sizes
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]  # no temporary file is left
    json.loads(path.read_text())


def test_what_a_file_leaves_out_has_its_default(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"train": {"epochs": 3}, "model": {"clip": {"name": "RN101-quickgelu"}}}))
    config = Config.load(path)
    assert config.train == replace(Config().train, epochs=3)
    assert config.model.clip == replace(Config().model.clip, name="RN101-quickgelu")
    assert config.data == DataConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "unknown field 'trian', did you mean 'train'?"),
        ({"train": {"epoch": 3}}, "unknown field 'train.epoch', did you mean 'epochs'?"),
        (
            {"model": {"clip": {"wieghts": "x"}}},
            "unknown field 'model.clip.wieghts', did you mean 'weights'?",
        ),
        (
            {"model": {"hrnet": {"zzzz": 1}}},
            "unknown field 'model.hrnet.zzzz'; expected one of name, tuning, weights",
        ),
        ({"train": 3}, "expected an object with the fields of TrainConfig, got 3"),
        ({"model": {"image_size": 100}}, "expected a multiple of 32 from 32 to 4096, got 100"),
        ({"model": {"clip_rpn": {"attend_to": "words"}}}, "expected pooled or tokens, got 'words'"),
        ([1, 2], "expected an object with the fields of Config"),
    ],
)
def test_wrong_files_are_refused_with_the_place_and_the_nearest_name(tmp_path, values, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as raised:
        Config.load(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_missing_or_no_json_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json.*no such file"):
        Config.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"train": ')
    with pytest.raises(ConfigError, match=r"config\.json: expected a run's settings as JSON"):
        Config.load(tmp_path / "config.json")


@pytest.mark.parametrize("size", [0, -32, 16, 100, 225, 8192, 64.5])
def test_input_size_has_to_fit_the_strides(size):
    with pytest.raises(
        ConfigError, match=rf"model\.image_size: expected a multiple of 32 from 32 to 4096, got {size}"
    ):
        ModelConfig(image_size=size)


def test_choices_are_checked():
    with pytest.raises(ConfigError, match="expected pooled or tokens"):
        ClipRPNConfig(attend_to="words")
    with pytest.raises(ConfigError, match=r"expected crop, crop\+blur or global-local"):
        DetectorClipConfig(mode="cut")
    with pytest.raises(ConfigError, match="max_proposals: expected a whole number from 1 to"):
        DetectorClipConfig(max_proposals=0)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("train.epochs", (0, -3, 2.5, "3", True), "a whole number of 1 or more"),
        ("train.batch_images", (0, -1), "a whole number of 1 or more"),
        ("train.accumulation", (0,), "a whole number of 1 or more"),
        ("train.cache_views", (0,), "a whole number of 1 or more"),
        ("train.epoch_images", (-1,), "a whole number of 0 or more"),
        ("train.similarity_images", (-1,), "a whole number of 0 or more"),
        ("train.save_every", (-1,), "a whole number of 0 or more"),
        ("train.seed", (-1, 2**32), "a whole number from 0 to 4294967295"),
        ("train.lr", (-1e-3, math.nan, math.inf, None), "a number of 0 or more"),
        ("train.backbone_lr", (-1e-9,), "a number of 0 or more"),
        ("train.text_lr", (-1e-9,), "a number of 0 or more"),
        ("train.weight_decay", (-0.1,), "a number of 0 or more"),
        ("train.warmup", (-0.1,), "a number of 0 or more"),
        ("train.grad_clip", (-1.0,), "a number of 0 or more"),
        ("train.layer_decay", (-0.5, 1.5), "a number from 0 to 1"),
        ("train.ema", (-0.1, 1.1), "a number from 0 to 1"),
        ("train.ema", (1.0,), "a number below 1"),
        ("train.optimizer", ("sgd",), "one of adamw, adam"),
        ("train.precision", ("fp8",), "one of auto, no, bf16, fp16"),
        ("data.workers", (-1,), "a whole number of 0 or more"),
        ("data.max_expressions", (0,), "a whole number of 1 or more"),
        ("data.limit_images", (-5,), "a whole number of 0 or more"),
        ("data.absent", (-1,), "a whole number of 0 or more"),
        ("data.flip", (-0.1, 1.1), "a number from 0 to 1"),
        ("data.jitter", (1.5,), "a number from 0 to 1"),
        ("data.recolor", (-1,), "a number from 0 to 1"),
        ("data.scale", ((0.0, 1.0), (2.0, 1.0), (1.0,), (1.0, math.inf)), "two numbers above 0"),
        ("model.clip.tuning", ("all",), "one of frozen, norms, last, lora, full"),
        ("model.clip.text_tuning", ("",), "one of frozen, norms, last, lora, full"),
        ("model.clip.lora_rank", (0,), "a whole number of 1 or more"),
        ("model.hrnet.tuning", ("all",), "one of frozen, norms, last, lora, full"),
        ("model.clip_hrnet.hidden", (-4, 10**6, 10**400), "a whole number from 0 to 16384"),
        ("model.dense_grounder.dropout", (1.5,), "a number from 0 to 1"),
        ("model.dense_grounder.box_weight", (-1.0,), "a number of 0 or more"),
        ("model.transvg.heads", (0,), "a whole number from 1 to 16384"),
        ("model.transvg.layers", (65,), "a whole number from 0 to 64"),
        ("model.clip_rpn.anchor_sizes", ((), (32, -5)), "numbers above 0, at most 16384"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(tmp_path, name, values, expected):
    path, keys = tmp_path / "config.json", name.split(".")
    for value in values:
        changes = {name.replace(".", "__"): value}
        with pytest.raises(ConfigError) as raised:
            set_fields(Config(), **changes)
        assert str(raised.value).startswith(f"{name}: expected {expected}")
        assert f"got {value!r}"[:80] in str(raised.value)
        assert len(str(raised.value)) < 200
        if (
            isinstance(value, int | float) and -math.inf < value < math.inf
        ):  # what JSON can say, in a run's file
            nested = value
            for key in reversed(keys):
                nested = {key: nested}
            path.write_text(json.dumps(nested))
            with pytest.raises(
                ConfigError, match=rf"config\.json: {name}: expected (a whole number, |{expected})"
            ):
                Config.load(path)


JUNK = ([], {}, None, True, "x", -1, 2.5, 10**400, math.nan, math.inf, [[1]], ["a"], "\0", "9" * 5000)


def test_any_value_in_any_field_is_a_config_or_an_error_of_one_line(tmp_path):
    """What a config.json may hold: each field with each kind of value."""
    path, said, usual = tmp_path / "config.json", [], dataclasses.asdict(Config())
    for part, name in fields_of(usual):
        for value in JUNK:
            values = json.loads(json.dumps(usual))
            inner = values
            for key in part:
                inner = inner[key]
            inner[name] = value
            path.write_text(json.dumps(values))
            try:
                loaded = Config.load(path)
            except ConfigError as error:
                said.append((f"{path}: {'.'.join([*part, name])}", str(error)))
            else:
                given = functools.reduce(getattr, (*part, name), loaded)
                default = functools.reduce(getattr, (*part, name), Config())
                assert isinstance(given, float | int if isinstance(default, float) else type(default))
    assert [error for where, error in said if not error.startswith(where) or ": expected " not in error] == []
    assert not any("\n" in error or len(error) > len(where) + 250 for where, error in said)
    assert len(said) > 1000


def fields_of(values, part=()):
    """Of nested dicts, each place: the names of the dicts on the way, and its own."""
    for name, inner in values.items():
        yield part, name
        if isinstance(inner, dict):
            yield from fields_of(inner, (*part, name))


def test_values_at_the_edge_are_taken():
    edge = {"train__lr": 0, "train__weight_decay": 0.0, "train__ema": 0.0, "data__scale": (1.0, 1.0)}
    edge |= {"train__epochs": 1, "train__batch_images": 1, "data__workers": 0, "data__flip": 1}
    config = set_fields(Config(), **edge)
    assert (config.train.lr, config.data.flip) == (0, 1)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.lr = 1.0


def test_presets_are_what_they_say():
    scenes, refcocog = preset("scenes"), preset("refcocog")
    assert (scenes.preset, refcocog.preset) == ("scenes", "refcocog")
    assert scenes.model.clip.weights == scenes.model.hrnet.weights == "shipped"  # nothing to download
    assert (refcocog.model.clip.name, refcocog.model.clip.weights) == ("RN50-quickgelu", "openai")
    assert (refcocog.model.hrnet.name, refcocog.model.hrnet.weights) == ("hrnet_w18", "imagenet")
    assert (refcocog.model.image_size, refcocog.data.partition) == (224, "")
    head = refcocog.model.clip_hrnet
    assert (head.clip_channels, head.hrnet_channels, head.fused_channels) == (128, 64, 256)
    assert preset("scenes", "text-only").model.name == "text-only"
    assert preset("refcocog").train.optimizer == "adamw"


@pytest.mark.parametrize("key", OWN_RECIPES)
def test_models_with_a_recipe_of_their_own_get_it(key):
    name, model = key
    config, usual = preset(name, model), set_fields(preset(name, "text-only"), model__name=model)
    assert config == set_fields(OWN_RECIPES[key](), model__name=model) != usual
    assert config.preset == name


@pytest.mark.parametrize("recipe", {*PRESETS.values(), *OWN_RECIPES.values()})
def test_a_recipe_says_how_it_is_run_and_what_to_expect(recipe):
    said = recipe.__doc__.lower()
    assert "command: `python -m vg_utils " in said
    assert all(word in said for word in ("hardware: ", "time", "score"))


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown preset 'scene', did you mean 'scenes'\?"):
        preset("scene")
    with pytest.raises(ConfigError, match="expected one of photos, refcocog, scenes"):
        preset("xyz")


def test_nearest_is_the_closest_or_all():
    assert nearest("lrr", ["lr", "epochs"]) == ", did you mean 'lr'?"
    assert nearest("qqq", ["lr", "epochs"]) == "; expected one of epochs, lr"


@pytest.mark.parametrize("name", PRESETS)
def test_random_init_trains_everything_and_changes_nothing_else(name):
    config = preset(name)
    random = random_init(config)
    clip, hrnet = random.model.clip, random.model.hrnet
    assert clip.weights == hrnet.weights == "random"
    assert clip.tuning == clip.text_tuning == hrnet.tuning == "full"
    assert (clip.name, hrnet.name) == (config.model.clip.name, config.model.hrnet.name)
    assert not random.train.cached  # nothing is frozen, so nothing can be kept
    assert replace(random, model=config.model, train=config.train) == config
    assert replace(random.model, clip=config.model.clip, hrnet=config.model.hrnet) == config.model


@pytest.mark.parametrize("name", PRESETS)
def test_fast_takes_seconds_and_keeps_the_model(name):
    config = preset(name)
    fast = with_fast(config)
    assert fast.model == config.model
    assert 0 < fast.data.limit_images <= 50
    assert fast.train.epochs <= 2
    assert fast.data.workers == 0
    assert replace(fast.data, limit_images=0, workers=config.data.workers) == config.data
