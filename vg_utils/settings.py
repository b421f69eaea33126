"""Settings on a command line: every field of `vg_utils.config` is a flag, `--train.lr 1e-3`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import re
from typing import Any

from vg_utils.config import Config, ConfigError
from vg_utils.presets import preset

MODELS = {  # what can be trained; `docs/systems.md` says more
    "clip-hrnet": "CLIP's image and phrase vectors over an HRNet map, one box regressed",
    "clip-rpn-attention": "the phrase fused into CLIP's map by attention, then region proposals",
    "clip-rpn-concat": "the same, fused by concatenation",
    "dense-grounder": "every cell of a map reads the phrase and says where the box is; presence, heat map",
    "text-only": "sees the phrase alone: a baseline",
    "transvg": "a transformer over cells and words, as published",
}
OFTEN_SET = {
    "--train.epochs": "passes over the images",
    "--train.batch-images": "images of a batch, each with its phrases",
    "--train.lr": "learning rate of the head",
    "--train.backbone-lr": "and of what trains in the backbones",
    "--model.image-size": "side of the square input in pixels",
    "--model.clip.name": "of open_clip, or photos",
    "--model.clip.weights": "openai, shipped, random, or a file",
    "--model.clip.tuning": "frozen, norms, last, lora or full; --model.clip.text-tuning likewise",
    "--data.workers": "decoding processes",
    "--data.limit-images": "use only the first so many of each split",
    "--train.precision": "auto, no, bf16 or fp16",
    "--train.seed": "the same seed, the same run",
}


def parse_settings(default: Config, flags: list[str]) -> Config:
    """`default` with the flags applied: ["--train.lr", "1e-3"] sets `train.lr`.

    Raises:
        ConfigError: an unknown flag (the message names the nearest valid one) or a value of another type.
    """
    import tyro  # late: questions about an image need none of it

    problem = io.StringIO()
    try:
        with contextlib.redirect_stderr(problem):
            config, unknown = tyro.cli(
                tyro.conf.FlagConversionOff[Config], args=flags, default=default, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help, printed by tyro
            raise
        raise ConfigError(_one_line(problem.getvalue())) from None
    if unknown:
        raise ConfigError(_unknown(unknown[0].split("=")[0], setting_flags(default)))
    return config


def help_text() -> str:
    """The models and the settings that are set most often, a line each."""
    parts = (("models", MODELS), ("settings, by default as the preset has them", OFTEN_SET))
    lines = []
    for title, texts in parts:
        lines += [f"{title}:", *(f"  {name:24} {text}" for name, text in texts.items()), ""]
    return "\n".join([*lines, "--help-all shows every setting with its value."])


class HelpAll(argparse.Action):
    """`--help-all`: every setting, with the values of the preset and the model named before it."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, *rest: Any) -> None:
        parse_settings(preset(options.preset, getattr(options, "model", "clip-hrnet")), ["--help"])


def setting_flags(value: Any, prefix: str = "--") -> list[str]:
    """Every flag that `parse_settings` knows: `--train.lr`, `--model.clip-hrnet.dropout` and so on."""
    flags = []
    for field in dataclasses.fields(value):
        name, inner = prefix + field.name.replace("_", "-"), getattr(value, field.name)
        flags += setting_flags(inner, name + ".") if dataclasses.is_dataclass(inner) else [name]
    return flags


def _unknown(word: str, flags: list[str]) -> str:
    """What is wrong with a word that is no flag, and the flag that was probably meant."""
    if not word.startswith("--"):
        return f"unexpected word {word!r}; settings are written --name value"
    name = word.removeprefix("--").replace("_", "-")
    meant = [flag for flag in flags if flag.endswith(f".{name}")]  # `--lr` for `--train.lr`
    meant = meant or difflib.get_close_matches(word, flags, n=1, cutoff=0.6)
    hint = (
        f", did you mean {' or '.join(map(repr, meant))}?" if meant else "; vg_utils/config.py has them all"
    )
    return f"unknown setting {word}{hint}"


def _one_line(box: str) -> str:
    """The sentence in the box that tyro draws around an error: what stands between its first two rules."""
    parts = re.split(r"-{5,}|─{5,}", re.sub(r"[│╭╮╰╯]", " ", box))
    sentence = parts[1] if len(parts) > 1 else box
    return " ".join(sentence.split()) or "the settings could not be read"
