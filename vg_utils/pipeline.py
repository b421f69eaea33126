"""What the command line does with a model: the main job and evaluation.

Training, scores and figures are imported by the functions that need them: pandas, matplotlib and open_clip
take seconds, and not every verb needs them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vg_utils.asking import NO_PRESENCE, answer_line, check_threshold
from vg_utils.config import Config, ConfigError, set_fields
from vg_utils.data import DataError, GroundingExample, Report, dataset_name, load_examples
from vg_utils.data.grefcoco import SEVERAL_TARGETS
from vg_utils.data.reviewed import read_reviewed
from vg_utils.devices import default_device
from vg_utils.files import check_file, check_folder, is_vacant, write_atomically
from vg_utils.models.checkpoints import (
    find_checkpoint,
    shipped_checkpoints,
)
from vg_utils.pickles import read_pickle, write_pickle
from vg_utils.predictor import Grounder
from vg_utils.presets import preset

if TYPE_CHECKING:
    from vg_utils.evaluation.runs import Evaluation

FAST_SCENES = {"images": 40, "size": 160, "seed": 0}
SCENES = {  # what `run --preset scenes` draws
    "images": 3600,
    "size": 160,
    "seed": 0,
    "counts": {"val": 200, "test": 300, "novel": 100},
}
PHOTOGRAPHS = Path(__file__).parent.parent / "Visuals" / "photographs"
ASKED_OF_PHOTOGRAPHS = {
    "astronaut.jpg": ["the woman", "the space shuttle in the background"],
    "coffee.jpg": ["the cup", "the spoon"],
    "cat.jpg": ["the cat", "the dog"],
}
ALSO_PRINTED = ("proposal", "ece", "aurc", "presence", "n_absent")  # how keys of results start


def run(config: Config, out: Path, fast: bool = False) -> dict[str, dict]:
    """Data, training, baselines, test scores, figures: everything, into one run directory.

    Beside them checkpoints of this design and of the best, where the package has them for this data set.

    Everything that a training needs is read before the first file of the run is written.

    A run that was stopped goes on from its last checkpoint when the same command is given again.

    Returns:
        Test results by system, as `evaluate --json` writes them; also in `out/results.pkl` with their rows.
    """

    from vg_utils.evaluation.runs import evaluate_constant, not_scored
    from vg_utils.figures.evaluation import draw_figures
    from vg_utils.training.engine import fit
    from vg_utils.training.loaders import load_split

    started = time.perf_counter()
    check_folder(out)
    if fast and config.data.root == preset("scenes").data.root:  # there a run in full draws more
        config = set_fields(config, data__root=f"{config.data.root}-fast")
    prepare_data(config, fast)
    splits = {split: load_split(config, split) for split in ("train", "val", "test")}
    test, name = splits["test"], dataset_name(config.data.root)
    choose_on = not_scored(splits["train"], test)  # if nothing is left, an error before the training
    quick = {"train__epochs": min(config.train.epochs, 5), "train__cache_views": 1}
    baseline = set_fields(config, model__name="text-only", train__similarity_images=0, **quick)
    for settings, directory in ((config, out), (baseline, out / "text-only")):
        print(f"\n{settings.model.name}: training into {directory}", flush=True)
        fit(settings, directory, resume=True, splits=splits)
    evaluated = {
        config.model.name: evaluate_run(out, test, name, "test"),
        "text-only": evaluate_run(out / "text-only", test, name, "test"),
        "constant-box": evaluate_constant(choose_on, test, name, "test"),
    }
    # The same design, and the best
    ready = {f"{config.preset}/{name}" for name in (config.model.name, "dense-grounder")}
    for checkpoint in sorted(ready.intersection(shipped_checkpoints(config.preset))):
        evaluated[checkpoint] = evaluate_run(checkpoint, test, name, "test", similarity=False)
    results = {system: evaluation.results for system, evaluation in evaluated.items()}
    rows = {system: evaluation.rows for system, evaluation in evaluated.items()}
    absent = {system: e.absent for system, e in evaluated.items() if e.absent is not None}
    write_pickle(out / "results.pkl", {"results": results, "rows": rows, "absent": absent})
    history = read_pickle(out / "history.pkl")
    draw_figures(out / "figures", evaluated[config.model.name], test, history, results)
    print(f"\n{name} test, {len(test)} images\n{results_table(results)}")
    if config.preset == "scenes":  # whoever runs it has seen solids only
        show_photographs()
    print(f"\nfigures and results are in {out}; {time.perf_counter() - started:.0f} s in all")
    return results


def prepare_data(config: Config, fast: bool = False) -> None:
    """See to it that the run's data set is there: draw RefScenes, or download RefCOCOg.

    Their writers decide what is missing of a folder that they began. Any other folder that holds something is
    a person's own data: it is used as it is, and nothing is ever written to it.

    Raises:
        DataError: the RefScenes there are another run's, or as the writers say.
    """
    root = Path(config.data.root)
    if config.preset not in ("scenes", "refcocog"):  # nothing here makes its data by itself
        return
    begun, write = _writer(config.preset, root, fast)
    if begun or (is_vacant(root) and root.suffix != ".jsonl"):
        write()
    else:
        print(f"{root}: own data, used as they are")


def _writer(preset_name: str, root: Path, fast: bool) -> tuple[bool, Callable[[], object]]:
    """Whether a preset's writer has begun a folder, and what goes on with it."""
    if preset_name == "scenes":
        from vg_utils.refscenes.scenes import numbers_of, processes_of_a_program, write_scenes

        found, wanted = numbers_of(root), FAST_SCENES if fast else SCENES
        if found and (fast or found != FAST_SCENES):  # made by `prepare` with numbers of the person's own
            wanted = found
        processes = processes_of_a_program(wanted["images"])
        return found is not None, lambda: write_scenes(root, **wanted, processes=processes)
    from vg_utils.data.download import is_download, prepare_refcocog

    return is_download(root), lambda: print(prepare_refcocog(root))


def evaluate_run(
    checkpoint: str | Path,
    examples: Sequence[GroundingExample],
    dataset: str,
    split: str,
    workers: int = 0,
    similarity: bool = True,
) -> Evaluation:
    """Rows and results of a checkpoint; with `similarity` CLIP looks at the crops as well."""
    from vg_utils.evaluation.runs import evaluate

    grounder = Grounder.load(checkpoint)
    return evaluate(grounder, examples, dataset, split, workers, similarity)


def evaluate_checkpoint(
    checkpoint: str,
    data: str,
    split: str,
    config: Config | None = None,
    partition: str | None = None,
    json_path: str | None = None,
    figures: str | None = None,
    reviewed: str | None = None,
    threshold: float | None = None,
) -> dict:
    """What `evaluate` does: score, print, and write JSON and figures where asked to.

    Args:
        checkpoint: a run directory, a shipped checkpoint, "constant-box" or "detector-clip".
        config: the settings of `detector-clip`, which has to have them; a checkpoint brings its own.
        reviewed: file of Ref-L4 that flags wrong sentences; the scores without them are given as well.
        threshold: of presence, for N-acc and T-acc (default: 0.5).

    Raises:
        ConfigError: a threshold that is no share, or where the data or the model do not go with one.
        DataError: as the readers say.
    """
    from vg_utils.evaluation.confidence import PRESENCE_THRESHOLD
    from vg_utils.evaluation.runs import evaluate_constant, evaluate_detector, more_results

    blind = checkpoint == "constant-box"
    if not blind and checkpoint != "detector-clip":
        find_checkpoint(checkpoint)  # a wrong name is an error before minutes of reading
    if json_path:
        check_file(Path(json_path))
    if figures:
        check_folder(Path(figures))
    if threshold is not None:
        check_threshold(threshold)
    report = Report()
    looked_at = not blind or figures is not None
    examples = load_examples(
        data, split, partition, False, report, require_images=looked_at, check_images=looked_at
    )
    if report.worth_saying:
        print(report)
    if not examples:
        raise DataError(f"{data}: no usable expression in split {split!r} ({report})")
    if threshold is not None and not any(example.absent for example in examples):
        raise ConfigError(f"--threshold: expected phrases that fit nothing in their image, {data} has none")
    review = read_reviewed(reviewed, examples) if reviewed else None
    if review:
        print(review)
    name = dataset_name(data)
    if blind:
        chosen_on = _choosing_split(data, split, partition, examples)
        evaluation = evaluate_constant(chosen_on, examples, name, split)
    elif checkpoint == "detector-clip":
        from vg_utils.models.detector_clip import build_detector_clip

        detector = build_detector_clip(config.model, default_device())
        evaluation = evaluate_detector(detector, examples, name, split)
    else:
        evaluation = evaluate_run(checkpoint, examples, name, split, workers=2)
    rows, results, _ = evaluation
    more = more_results(evaluation, PRESENCE_THRESHOLD if threshold is None else threshold, review)
    if threshold is not None and "n_acc" not in more:
        raise ConfigError(NO_PRESENCE.format(results["model"]))
    results |= more
    if report.counts[SEVERAL_TARGETS]:
        results["n_several_targets"] = report.counts[SEVERAL_TARGETS]
    if json_path:
        text = json.dumps(results, indent=2) + "\n"
        write_atomically(Path(json_path), text.encode())
    if figures:
        from vg_utils.figures.evaluation import draw_figures

        draw_figures(Path(figures), evaluation, examples)
    refs = rows["ref_id"].nunique()
    print(f"{name} {split}: {results['n_images']} images, {refs} refs, {len(rows)} expressions")
    scores = {results["model"]: results}
    if review:
        scores["without the flagged"] = results["reviewed"]
    print(results_table(scores))
    for name, value in results.items():
        if name == "note" or name.startswith(ALSO_PRINTED):
            print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    return results


def _choosing_split(
    data: str, split: str, partition: str | None, scored: Sequence[GroundingExample]
) -> list[GroundingExample]:
    """The examples to choose a constant box on: of train, else val, never what is scored."""
    from vg_utils.evaluation.runs import not_scored

    reason = f"{data} has no split beside {split!r} to choose the box on"
    for other in ("train", "val"):
        if other != split:
            try:
                examples = load_examples(data, other, partition, False, Report(), require_images=False)
                return not_scored(examples, scored)
            except DataError as error:
                reason = str(error)
    raise ConfigError(f"constant-box: {reason}")


def show_photographs(folder: Path = PHOTOGRAPHS) -> None:
    """Print what the model for photographs answers about a few of them, where they are."""
    if not folder.is_dir():
        print(f"\nno photographs to ask about: {folder.name} lies beside the package's source only")
        return
    grounder = Grounder.load()
    print(f"\n{grounder.origin}")
    for name, phrases in ASKED_OF_PHOTOGRAPHS.items():
        grounder.set_image(folder / name)
        for p in grounder.ground(phrases):
            print(f"{name}: {answer_line(p, threshold=0.5)}")


def results_table(results: dict[str, dict]) -> str:
    """Results as a table of text."""
    from vg_utils.evaluation.columns import OF_TARGETS, USUAL

    columns = [*USUAL, *(c for c in OF_TARGETS if any(c.key in found for found in results.values()))]
    lines = [f"{'':20}" + "".join(f"{column.header:>14}" for column in columns)]
    for system, found in results.items():
        lines.append(f"{system:20}" + "".join(f"{column.cell(found):>14}" for column in columns))
    return "\n".join(lines)
