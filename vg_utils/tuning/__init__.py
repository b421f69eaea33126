"""The search for settings with Optuna."""

from vg_utils.tuning.figures import draw_curves, draw_history, draw_importances, draw_slices, importances_of
from vg_utils.tuning.report import count_trials, trials_frame
from vg_utils.tuning.search import tune
from vg_utils.tuning.spaces import SPACES, own_parameters, suggest

__all__ = [
    "SPACES",
    "count_trials",
    "draw_curves",
    "draw_history",
    "draw_importances",
    "draw_slices",
    "importances_of",
    "own_parameters",
    "suggest",
    "trials_frame",
    "tune",
]
