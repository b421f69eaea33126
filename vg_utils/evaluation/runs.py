"""From a system and a split to rows and the results that `evaluate --json` writes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from vg_utils.data.batches import Batch
from vg_utils.data.examples import DataError, GroundingExample
from vg_utils.data.reviewed import Reviewed
from vg_utils.evaluation.confidence import PRESENCE_THRESHOLD, confidence_of, target_accuracy
from vg_utils.evaluation.metrics import summarise
from vg_utils.evaluation.rows import ask, constant_answer, eval_batches, make_rows, predict_rows
from vg_utils.evaluation.similarity import add_clip_similarity, judge_for
from vg_utils.models.blind import fit_constant_box
from vg_utils.models.checkpoints import CheckpointError
from vg_utils.models.detector_clip import DetectorClip
from vg_utils.models.detectors import SEEN

if TYPE_CHECKING:
    from vg_utils.predictor import Grounder


class Evaluation(NamedTuple):
    """What `evaluate` gives: rows, results for JSON, and rows of absent phrases where it asked any."""

    rows: pd.DataFrame
    results: dict
    absent: pd.DataFrame | None = None


def results_of(
    rows: pd.DataFrame,
    model: str,
    dataset: str,
    split: str,
    seconds: float,
    absent: pd.DataFrame | None = None,
) -> dict:
    """The object that `evaluate --json` writes; shares are in [0, 1], seconds those of predicting."""
    return {
        "model": model,
        "dataset": dataset,
        "split": split,
        **summarise(rows),
        **confidence_of(rows, absent),
        "seconds": round(seconds, 3),
    }


def evaluate(
    grounder: Grounder,
    examples: Sequence[GroundingExample],
    dataset: str,
    split: str,
    workers: int = 0,
    similarity: bool = True,
    batches: Iterable[Batch] | None = None,
) -> Evaluation:
    """Rows and results of a model on a split.

    A model that says whether a phrase fits anything is asked the absent phrases of the images as well.

    Args:
        grounder: the model, its settings and its device.
        examples: of the split.
        dataset, split: what they are called in the results.
        workers: decoding processes.
        similarity: whether a pretrained backbone looks at the predicted crops, too.
        batches: those of `examples`, in order, where they are at hand already (`ResidentPictures.loader`).

    Raises:
        CheckpointError: an answer that is NaN.
    """
    model, config, device = grounder.model, grounder.config.model, grounder.device
    started = time.perf_counter()
    if batches is None:
        all_or_none = None if model.learns_presence else 0
        batches = eval_batches(
            examples, config.image_size, model.tokenizer, workers=workers, absent=all_or_none
        )
    rows, _, absent = predict_rows(model, examples, batches, config.image_size, device)
    seconds = time.perf_counter() - started
    if rows[["x1", "y1", "x2", "y2", "score"]].isna().any(axis=None):
        raise CheckpointError("expected finite answers of the model, got NaN: its weights are damaged")
    judge = judge_for(model, config, device) if similarity else None
    if judge is not None:
        rows = add_clip_similarity(rows, examples, judge, device)
    results = results_of(rows, config.name, dataset, split, seconds, absent)
    return Evaluation(rows, results, absent if model.learns_presence else None)


def more_results(
    evaluation: Evaluation, threshold: float = PRESENCE_THRESHOLD, reviewed: Reviewed | None = None
) -> dict:
    """What `evaluate --json` writes beside `results_of`, where the data have it.

    Args:
        evaluation: of a system.
        threshold: of presence; see `target_accuracy`, whose keys come from phrases that fit nothing.
        reviewed: of the sentences; then `reviewed` holds its counts and the scores without those flagged.
    """

    def accuracy(rows: pd.DataFrame) -> dict:
        return target_accuracy(rows, evaluation.absent, threshold)

    found = accuracy(evaluation.rows)
    if reviewed is not None:
        right = evaluation.rows[~evaluation.rows["sent_id"].isin(reviewed.flagged)]
        found["reviewed"] = {**reviewed.counts(), **summarise(right), **accuracy(right)}
    return found


def evaluate_detector(
    detector: DetectorClip,
    examples: Sequence[GroundingExample],
    dataset: str,
    split: str,
    similarity: bool = True,
) -> Evaluation:
    """Rows (with `proposal_iou@all`) and results of `detector-clip`, as `evaluate` gives them of a model.

    The results also say where the proposals came from, how CLIP ranked them, and the caveat that goes
    with a detector trained on COCO.
    """
    started = time.perf_counter()
    answers = detector.answer_examples(examples)
    seconds = time.perf_counter() - started
    rows = make_rows(examples, answers.boxes_xyxy, answers.scores)
    rows = rows.assign(**{"proposal_iou@all": answers.proposal_iou.numpy()})
    if similarity:
        rows = add_clip_similarity(rows, examples, detector.clip, detector.device)
    results = results_of(rows, "detector-clip", dataset, split, seconds)
    settings = detector.config.detector_clip
    results |= {
        "proposals": detector.source.name,
        "mode": settings.mode,
        "spatial_prior": settings.spatial_prior,
    }
    if settings.detector == "yolo" or (settings.weights == "coco" and settings.detector != "oracle"):
        results["note"] = SEEN
    return Evaluation(rows, results)


def evaluate_constant(
    chosen_on: Sequence[GroundingExample], examples: Sequence[GroundingExample], dataset: str, split: str
) -> Evaluation:
    """Rows and results of the box that is best on `chosen_on`, without what is scored.

    Raises:
        DataError: see `not_scored`.
    """
    chosen_on = not_scored(chosen_on, examples)
    started = time.perf_counter()
    rows = ask(constant_answer(fit_constant_box(chosen_on)), examples)
    seconds = time.perf_counter() - started
    return Evaluation(rows, results_of(rows, "constant-box", dataset, split, seconds))


def not_scored(
    chosen_on: Sequence[GroundingExample], scored: Sequence[GroundingExample]
) -> list[GroundingExample]:
    """The examples to choose something on: those with no expression that is scored too.

    Raises:
        DataError: none is left, as where a file of JSON lines names no splits, and all are the same.
    """
    seen = set().union(*map(_told, scored))
    left = [example for example in chosen_on if seen.isdisjoint(_told(example))]
    if not left:
        raise DataError(
            "expected other images to choose on than those that are scored, got the same: give each line of "
            'a .jsonl file a "split" (train, val, test), or a folder with train.jsonl, val.jsonl, test.jsonl'
        )
    return left


def _told(example: GroundingExample) -> set[tuple]:
    """What is said of an image: its file, or id where it is in memory, with each text and box."""
    image = example.image if isinstance(example.image, Path) else example.image_id
    return {(image, expression.text, expression.box_xyxy) for expression in example.expressions}
