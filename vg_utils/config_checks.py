"""Settings that cannot be: every check raises a ConfigError that names field, expectation and value."""

from __future__ import annotations

import difflib
import math
from dataclasses import fields
from typing import Any, get_args

NO_LIMIT = math.inf
LARGEST = 2**14  # whole number among a model's settings: widths beyond it fill any memory
_DEEPEST = 64  # of its layers, blocks and looks
_DEPTHS = ("layers", "blocks", "refinements")
_AT_LEAST_ONE = ("heads", "lora_rank", "num_classes", "kept", "before_nms", "sampled_anchors")
_SHARES = ("dropout", "positive_share", "foreground_iou", "background_iou", "nms_iou", "score_threshold")


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; the message names the nearest valid one."""


def nearest(name: str, valid: Any) -> str:
    """`, did you mean 'x'?` for the closest of the valid names, else a list of them all."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(sorted(valid))}"


def check_ranges(config: Any, part: str, **ranges: tuple[float, float]) -> None:
    """Each of these fields has to be a finite number from the first to the second of its range.

    Args:
        config: a dataclass; a field whose default is a whole number has to be one.
        part: what it is called, as in `train`.
        ranges: by name of the field.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for name, (low, high) in ranges.items():
        value, whole = getattr(config, name), isinstance(defaults[name], int)
        is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) < NO_LIMIT or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            span = f"of {low} or more" if high == NO_LIMIT else f"from {low} to {high}"
            raise ConfigError(f"{part}.{name}: expected {what} {span}, got {told(value)}")


def check_numbers(config: Any, part: str) -> None:
    """What holds for every number among a model's settings: none is negative or vast, no share is above 1."""
    ranges = {}
    for field in fields(config):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            low = 1 if field.name in _AT_LEAST_ONE else 0
            high = LARGEST if isinstance(field.default, int) else NO_LIMIT
            high = 1 if field.name in _SHARES else _DEEPEST if field.name in _DEPTHS else high
            ranges[field.name] = (low, high)
    check_ranges(config, part, **ranges)


def typed(value: Any, default: Any, name: str) -> Any:
    """A setting as JSON gives it, in the type of its default: a list for a tuple, 1 for 1.0.

    Raises:
        ConfigError: it is of another type, or a number that is not finite.
    """
    kind = type(default)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: expected a list, got {told(value)}")
        return tuple(typed(each, default[0], f"{name}[{i}]") for i, each in enumerate(value))
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{name}: expected {_WORDS[kind]}, got {told(value)}")
    if kind is float and not abs(value) < NO_LIMIT:
        raise ConfigError(f"{name}: expected a finite number, got {told(value)}")
    return value


def told(value: Any) -> str:
    """A value in an error message, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_choice(value: Any, name: str, kinds: Any) -> None:
    """The value has to be one of those of a Literal."""
    if value not in get_args(kinds):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(kinds))}, got {told(value)}")
