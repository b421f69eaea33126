"""The fields of `Config` as flags of the command line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vg_utils import settings
from vg_utils.cli import main
from vg_utils.config import Config, ConfigError
from vg_utils.models import MODELS
from vg_utils.presets import preset
from vg_utils.settings import parse_settings, setting_flags

FLAGS = setting_flags(Config())
CHOICES = {  # another value for the fields that do not take any
    "--model.clip.tuning": "last",
    "--model.clip.text-tuning": "full",
    "--model.hrnet.tuning": "full",
    "--model.image-size": "96",
    "--model.clip-rpn.attend-to": "tokens",
    "--model.detector-clip.mode": "crop+blur",
    "--model.clip-hrnet.box-loss": "ciou",
    "--model.dense-grounder.box-loss": "giou",
    "--model.transvg.box-loss": "l1",
    "--train.optimizer": "adam",
    "--train.precision": "bf16",
    "--train.log": "tensorboard",
}


def value_of(config: Any, flag: str) -> Any:
    for name in flag.removeprefix("--").replace("-", "_").split("."):
        config = getattr(config, name)
    return config


def different(flag: str) -> tuple[list[str], Any]:
    """Words for the command line and the value that they mean, other than the default."""
    default = value_of(Config(), flag)
    if flag in CHOICES:
        return [CHOICES[flag]], type(default)(CHOICES[flag])
    if isinstance(default, bool):
        return [str(not default)], not default
    if isinstance(default, int):
        return [str(default + 1)], default + 1
    if isinstance(default, float):  # many are shares
        return [str(default / 2 or 0.5)], default / 2 or 0.5
    if isinstance(default, tuple):
        return [str(value + 1) for value in default], tuple(value + 1 for value in default)
    return ["other"], "other"


def test_flags_are_the_fields():
    assert len(FLAGS) == len(set(FLAGS)) > 50
    for flag in (
        "--preset",
        "--data.root",
        "--model.clip-hrnet.dropout",
        "--model.clip.tuning",
        "--train.lr",
    ):
        assert flag in FLAGS


@pytest.mark.parametrize("flag", FLAGS)
def test_every_field_can_be_set_and_nothing_else_changes(flag):
    usual, (words, expected) = Config(), different(flag)
    config = parse_settings(Config(), [flag, *words])
    value = value_of(config, flag)
    assert value == expected
    assert type(value) is type(expected)
    assert [f for f in FLAGS if value_of(config, f) != value_of(usual, f)] == [flag]


def test_no_flags_change_nothing_and_defaults_are_the_presets():
    for name in ("scenes", "refcocog"):
        config = preset(name, "clip-rpn-concat")
        assert parse_settings(config, []) == config
    config = parse_settings(preset("scenes"), ["--train.epochs", "3", "--data.flip", "0"])
    assert (config.train.epochs, config.data.flip) == (3, 0.0)
    train = dataclasses.replace(preset("scenes").train, epochs=3)
    assert config.train == train


def test_spellings():
    underscores = parse_settings(Config(), ["--model.clip_hrnet.fused_channels", "8"])
    assert underscores == parse_settings(Config(), ["--model.clip-hrnet.fused-channels=8"])
    assert underscores.model.clip_hrnet.fused_channels == 8
    config = parse_settings(
        Config(), ["--train.lr", "1e-3", "--train.cached", "True", "--data.scale", "0.5", "2"]
    )
    assert (config.train.lr, config.train.cached, config.data.scale) == (1e-3, True, (0.5, 2.0))
    config = parse_settings(Config(), ["--model.clip-rpn.anchor-sizes", "8", "16"])
    assert config.model.clip_rpn.anchor_sizes == (8, 16)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--train.lrr", "1"], ["--train.lrr", "'--train.lr'"]),
        (["--train.epoch", "1"], ["--train.epoch", "'--train.epochs'"]),
        (["--model.clip.tunning", "last"], ["--model.clip.tunning", "'--model.clip.tuning'"]),
        (["--train.lrr=1"], ["--train.lrr,", "'--train.lr'"]),
        (["--lr", "1"], ["--lr", "'--train.lr'"]),
        (["--fused_channels", "1"], ["'--model.clip-hrnet.fused-channels'"]),
        (["--nothing-like-it", "1"], ["--nothing-like-it", "config.py"]),
        (["stray"], ["stray"]),
        (["--train.epochs", "many"], ["--train.epochs", "many"]),
        (["--train.epochs", "1.5"], ["--train.epochs", "1.5"]),
        (["--train.epochs"], ["--train.epochs"]),
        (["--train.cached", "maybe"], ["--train.cached", "maybe"]),
        (["--data.scale", "0.5"], ["--data.scale"]),
        (["--model.clip.tuning", "some"], ["--model.clip.tuning", "some", "frozen"]),
        (["--model.image-size", "100"], ["image_size", "100", "32"]),
    ],
)
def test_wrong_flags_are_one_line_that_names_them(flags, named, capsys):
    with pytest.raises(ConfigError) as raised:
        parse_settings(Config(), flags)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 200
    for part in named:
        assert part in message, message
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_help_lists_the_models_and_settings_that_there_are(capsys):
    assert settings.MODELS.keys() == MODELS.keys()
    assert settings.OFTEN_SET.keys() <= set(FLAGS)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--preset", "photos", "--model", "transvg", "--help-all"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in FLAGS)
    assert "default: photos" in shown
    assert "default: transvg" in shown
