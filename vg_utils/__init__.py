"""Visual grounding with CLIP: given a picture and a phrase, find the one box it means.

The parts that a program starts from. Each is imported when it is first asked for, so that importing the
package costs nothing.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Config": "config",
    "preset": "presets",
    "Expression": "data.examples",
    "GroundingExample": "data.examples",
    "load_examples": "data",
    "GroundingModel": "models.base",
    "build_model": "models",
    "fit": "engine",
    "evaluate_model": "evaluation",
    "summarise": "metrics",
    "Grounder": "predictor",
    "Prediction": "predictor",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vg_utils' has no attribute {name!r}")
    return getattr(import_module(f"vg_utils.{_EXPORTS[name]}"), name)
