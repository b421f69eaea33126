"""Visual grounding with CLIP: given an image and a phrase, find the one box it means.

`from vg_utils import ...` gives what a program or a notebook starts from. Each name is imported when it is
first asked for, so that importing the package costs nothing. RefScenes and the search for settings have faces
of their own, `vg_utils.refscenes` and `vg_utils.tuning`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = {  # module -> what it is asked for
    "boxes": ("boxes_to_image", "boxes_to_model", "letterbox", "paired_iou", "to_cxcywh", "to_xyxy"),
    "config": ("Config", "ConfigError", "set_fields"),
    "presets": ("preset",),
    "data": ("DataError", "Expression", "GroundingExample", "Report", "load_examples", "load_image"),
    "data.convert": ("convert_dataset", "convert_frame"),
    "data.batches": ("GroundingDataset",),
    "data.refer_files": (
        "annotation_folder",
        "choose_partition",
        "count_splits",
        "leakage",
        "read_refs",
        "write_refer",
    ),
    "data.text": ("swap_left_right",),
    "data.transforms": ("EvalTransform",),
    "models": ("build_model",),
    "models.base": ("GroundingModel",),
    "models.blind": ("fit_constant_box",),
    "models.checkpoints": ("DEFAULT_CHECKPOINT", "origin", "shipped_checkpoints"),
    "models.detector_clip": ("build_detector_clip",),
    "models.fingerprints": ("fingerprint",),
    "models.losses": ("box_losses", "cells_in_box"),
    "models.prediction": ("Prediction", "Predictions"),
    "models.spatial": ("parse_phrase",),
    "training.engine": ("fit",),
    "training.features": ("cache_features",),
    "pickles": ("read_pickle",),
    "predictor": ("Encoded", "Grounder"),
    "evaluation.confidence": ("expected_calibration_error", "presence_by_family"),
    "evaluation.metrics": ("bootstrap_ci", "breakdown", "summarise"),
    "evaluation.rows": ("eval_batches",),
    "evaluation.runs": ("Evaluation", "evaluate", "evaluate_constant", "evaluate_detector"),
    "evaluation.similarity": ("add_clip_similarity", "judge_for"),
    "figures.annotate": ("annotate",),
    "figures.architecture": ("draw_architecture", "draw_hrnet", "shapes_of"),
    "figures.charts": ("breakdown_bars", "compare_bars", "iou_histogram"),
    "figures.evaluation": ("presence_histogram", "reliability_diagram", "risk_coverage_curve"),
    "figures.pictures": (
        "HEAT",
        "draw_boxes",
        "grid_items",
        "heatmap_grid",
        "prediction_grid",
        "prediction_items",
        "sample_rows",
        "worst_failures",
    ),
    "figures.style": ("STYLE", "save_figure"),
    "notebook": ("hand_over", "install_missing", "take_over"),
}
_HOME = {name: module for module, names in _FACE.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vg_utils' has no attribute {name!r}")
    return getattr(import_module(f"vg_utils.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
