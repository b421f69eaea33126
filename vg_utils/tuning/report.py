"""After a search: the best settings and the preset's, both trained again on other seeds, and asked on test.

A search's best value is too good: it is the luckiest of many, on the seed and the images that it was chosen
on. So what counts is the mean over seeds that the search never saw, on images that nobody chose by. The
split `test` is read here for the first time, by runs that are fixed by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FixedTrial, TrialState

from vg_utils.config import Config, set_fields
from vg_utils.data import GroundingExample, dataset_name
from vg_utils.evaluation.metrics import bootstrap_ci
from vg_utils.evaluation.runs import evaluate
from vg_utils.models.checkpoints import drop_resumable
from vg_utils.pickles import read_pickle, write_pickle
from vg_utils.predictor import Grounder
from vg_utils.training.engine import fit
from vg_utils.training.loaders import load_split
from vg_utils.tuning.figures import draw_study
from vg_utils.tuning.spaces import suggest
from vg_utils.tuning.storage import best_trial, is_finished, is_lost

OTHER_SEEDS = 3  # than the search's
STUDENT_975 = 4.303  # 97.5% quantile of Student's t with two degrees of freedom, for three seeds


def write_report(study: optuna.Study, config: Config, out: Path, progress: bool = True) -> dict[str, Any]:
    """Retrain, evaluate, draw, write and print.

    A run that was trained and evaluated by an earlier call is taken as it is, so test is asked once for it.

    Args:
        study: with its trials.
        config: the run without a search.
        out: gets `results.pkl` (what is returned), `trials.pkl` (its frame of trials), `figures/` and
            `retrained/`.
        progress: show the trainings' bars.

    Returns:
        `study, model, dataset, objective, counts, best` (number, val_miou, params), `preset_val_miou`,
        `trials` (a frame), `curves` (val mIoU of the epochs by trial number), and, where a trial was
        complete, `test` with `preset`, `tuned` (see `summarise_seeds`) and `difference` (see `compare`).
    """
    best, data = best_trial(study), dataset_name(config.data.root)
    results = {
        "study": study.study_name,
        "model": config.model.name,
        "dataset": data,
        "objective": study.user_attrs["asked"]["objective"],
        "counts": count_trials(study),
        "trials": trials_frame(study),
        "curves": {trial.number: trial.user_attrs.get("curve", []) for trial in study.trials},
    }
    if best is not None:
        results["best"] = {"number": best.number, "val_miou": best.values[0], "params": best.params}
        results["preset_val_miou"] = _preset_value(study)
        tuned = suggest(config, FixedTrial(best.params))
        test = load_split(config, "test")
        directories = {"preset": out / "retrained" / "preset"}
        directories["tuned"] = out / "retrained" / f"trial-{best.number:04d}"
        rows = {
            name: _retrained(settings, directories[name], test, progress)
            for name, settings in (("preset", config), ("tuned", tuned))
        }
        results["test"] = {name: summarise_seeds(tables) for name, tables in rows.items()}
        results["test"]["difference"] = compare(rows["tuned"], rows["preset"])
    write_pickle(out / "results.pkl", results)
    write_pickle(out / "trials.pkl", results["trials"])
    draw_study(study, out / "figures", f"study {study.study_name}: {config.model.name} on {data}")
    print(report_text(results))
    print(f"\nresults.pkl, trials.pkl, figures and the trials' runs are in {out}")
    return results


def count_trials(study: optuna.Study) -> dict[str, int]:
    """How the trials ended: `finished` = `complete` + `pruned` + `failed`; `lost` ones were queued again."""
    trials = study.get_trials(deepcopy=False)
    lost = sum(map(is_lost, trials))
    states = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    return {
        "finished": sum(map(is_finished, trials)),
        "complete": states[TrialState.COMPLETE],
        "pruned": states[TrialState.PRUNED],
        "failed": states[TrialState.FAIL] - lost,
        "lost": lost,
    }


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row a trial: number, state, val mIoU, second objective, seconds, error and so on, parameters."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.values or [None]
        seconds = trial.duration.total_seconds() if trial.duration else None
        row = {"number": trial.number, "state": "LOST" if is_lost(trial) else trial.state.name}
        row |= {"val_miou": values[0]}
        if len(study.directions) > 1:
            row[study.user_attrs["asked"]["objective"]] = values[1] if len(values) > 1 else None
        row |= {"seconds": seconds, "epochs": len(trial.user_attrs.get("curve", []))}
        row |= {name: trial.user_attrs.get(name) for name in ("seed", "error", "run_dir", "worker")}
        row["retry_of"] = (trial.user_attrs.get("retry_of") or [None])[-1]
        rows.append(row | trial.params)
    return pd.DataFrame(rows)


def summarise_seeds(tables: list[pd.DataFrame]) -> dict[str, Any]:
    """Test scores of the same settings on several seeds.

    Args:
        tables: `image_id, sent_id, iou` of every test expression, one table a seed.

    Returns:
        `miou` and `acc@0.5` (means over seeds), `miou_by_seed`, `miou_ci95` (over images, of these very
        models) and `miou_seeds_ci95` (Student's t over the seeds, of another training; wide, as it should be
        with three).
    """
    by_seed = [float(table["iou"].mean()) for table in tables]
    mean = float(np.mean(by_seed))
    half = STUDENT_975 * float(np.std(by_seed, ddof=1)) / len(by_seed) ** 0.5
    together = pd.concat(tables)
    return {
        "miou": mean,
        "acc@0.5": float((together["iou"] >= 0.5).mean()),
        "miou_by_seed": by_seed,
        "miou_ci95": list(bootstrap_ci(together["iou"], together["image_id"])),
        "miou_seeds_ci95": [mean - half, mean + half],
    }


def compare(tuned: list[pd.DataFrame], preset: list[pd.DataFrame]) -> dict[str, Any]:
    """Mean difference of IoU, expression by expression, and its interval over images.

    Paired: both were asked the same, so what is hard for both does not blur the difference.
    """
    means = [pd.concat(tables).groupby(["image_id", "sent_id"])["iou"].mean() for tables in (tuned, preset)]
    difference = means[0] - means[1]
    interval = bootstrap_ci(difference, difference.index.get_level_values("image_id"))
    return {"miou": float(difference.mean()), "miou_ci95": list(interval)}


def report_text(results: dict[str, Any]) -> str:
    """The results as a few lines of text."""
    counts = ", ".join(f"{n} {name}" for name, n in results["counts"].items())
    lines = [f"\nstudy {results['study']}, {results['model']} on {results['dataset']}: {counts}"]
    if "best" not in results:
        return lines[0] + "; no trial was complete, so there is nothing to retrain"
    best = results["best"]
    lines.append(f"best: trial {best['number']}, val mIoU {best['val_miou']:.4f}, with")
    lines += [f"  --{name.replace('_', '-')} {value}" for name, value in best["params"].items()]
    lines.append(f"\ntest, each trained on {OTHER_SEEDS} seeds that the search did not use; 95% intervals")
    lines.append(f"{'':10}{'mIoU':>8}{'over images':>16}{'over seeds':>16}{'Acc@0.5':>10}   each seed")
    for name in ("preset", "tuned"):
        r = results["test"][name]
        images, seeds = (_interval(r[key]) for key in ("miou_ci95", "miou_seeds_ci95"))
        each = " ".join(f"{value:.3f}" for value in r["miou_by_seed"])
        lines.append(f"{name:10}{r['miou']:>8.3f}{images:>16}{seeds:>16}{r['acc@0.5']:>10.3f}   {each}")
    difference = results["test"]["difference"]
    lines.append(f"{'gain':10}{difference['miou']:>+8.3f}{_interval(difference['miou_ci95']):>16}")
    return "\n".join(lines)


def _retrained(
    config: Config, directory: Path, test: list[GroundingExample], progress: bool
) -> list[pd.DataFrame]:
    """Train a config on the other seeds and ask each on test: `image_id, sent_id, iou`, a table a seed."""
    tables = []
    for seed in range(config.train.seed + 1, config.train.seed + 1 + OTHER_SEEDS):
        run_dir = directory / f"seed-{seed}"
        answers = run_dir / "test.pkl"
        if not answers.exists():
            fit(set_fields(config, train__seed=seed), run_dir, True, progress)
            place = (dataset_name(config.data.root), "test")
            rows = evaluate(Grounder.load(run_dir), test, *place, similarity=False).rows
            write_pickle(answers, rows[["image_id", "sent_id", "iou"]])
            drop_resumable(run_dir)
        tables.append(pd.DataFrame(read_pickle(answers)))
    return tables


def _preset_value(study: optuna.Study) -> float | None:
    """Validation mIoU of the first trial, or of the retry that stands for it."""
    values = [trial.values[0] for trial in study.trials if trial.values and trial.params == _preset(study)]
    return values[0] if values else None


def _preset(study: optuna.Study) -> dict[str, Any]:
    return study.trials[0].system_attrs["fixed_params"]


def _interval(bounds: list[float]) -> str:
    return f"{bounds[0]:.3f}-{bounds[1]:.3f}" if bounds[0] >= 0 else f"{bounds[0]:+.3f} {bounds[1]:+.3f}"
