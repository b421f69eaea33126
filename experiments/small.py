"""All systems on a processor, in some two hours: `python -m experiments.small --out runs/small`.

What `experiments.run` does on GPUs with 50,000 pictures, this does with the few of `make run`: the preset
`scenes`, frozen backbones, features cached once. Beside them `detector-clip` in its modes, and what does not
look. Give the same command again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.plan import ABLATIONS, SYSTEMS, Run, training_free
from experiments.results import FLAGSHIP
from experiments.run import SPLITS, add_split, costs, outcome, score_untrained
from vg_utils.config import set_fields
from vg_utils.models.checkpoints import save_pickle, shipped_checkpoints
from vg_utils.pipeline import evaluate_run, prepare_data
from vg_utils.predictor import Grounder, default_device
from vg_utils.presets import preset
from vg_utils.training.loaders import load_split

COMMAND = "python -m experiments.small --out runs/small"
TRAINED = {  # epochs: minutes each on two cores, the table of costs says how many
    "dense-grounder": 4,
    "transvg": 2,
    "clip-hrnet": 12,
    "clip-rpn-concat": 12,
    "clip-rpn-pooled": 12,
    "clip-rpn-tokens": 12,
}


def train_and_score(run: Run, seed: int, out: Path) -> dict:
    """One system, trained and scored as the command line does it."""
    from vg_utils.training.engine import fit

    config, directory = set_fields(run.config, train__seed=seed), out / "runs" / f"{run.name}-{seed}"
    started = time.perf_counter()
    history = fit(config, directory, resume=True)
    seconds = time.perf_counter() - started
    found = outcome(run, seed, COMMAND) | costs(Grounder.load(directory).model, history, seconds)
    found["images"] = len(load_split(config, "train"))
    for split in SPLITS:
        add_split(found, split, *evaluate_run(directory, load_split(config, split), "RefScenes", split)[:2])
    return found


def score_as_it_is(run: Run, seed: int, out: Path) -> dict:
    """What learns nothing: `detector-clip` and the constant box."""
    examples = {split: load_split(run.config, split) for split in ("train", *SPLITS)}
    return score_untrained(run, examples, COMMAND)


def score_shipped(run: Run, seed: int, out: Path) -> dict:
    """A checkpoint that comes with the package, as it is."""
    found = outcome(run, seed, COMMAND)
    for split in SPLITS:
        examples = load_split(run.config, split)
        add_split(found, split, *evaluate_run(run.label, examples, "RefScenes", split)[:2])
    return found


def plan() -> list[tuple[Run, int, Callable[[Run, int, Path], dict]]]:
    """Every run, how many seeds it has and what does it."""
    runs: list[tuple[Run, int, Callable[[Run, int, Path], dict]]] = []
    for name, epochs in TRAINED.items():
        model, changes = SYSTEMS[name]
        changes = {"train__epochs": epochs, "train__similarity_images": 0, **changes}
        config = set_fields(preset("scenes", model), **changes)
        runs.append((Run(name, "systems", name, config), 1, train_and_score))
        if name == FLAGSHIP:
            for label, change in ABLATIONS.items():
                if label != "frozen backbones":  # here all are
                    changed = Run(
                        f"ablation-{label.replace(' ', '-')}", "ablation", label, set_fields(config, **change)
                    )
                    runs.append((changed, 1, train_and_score))
    for run in training_free(preset("scenes", "detector-clip")):
        runs.append((run, 1, score_as_it_is))
    blind = set_fields(preset("scenes", "text-only"), train__similarity_images=0, train__cache_views=1)
    runs.append((Run("text-only", "blind", "text-only", blind), 1, train_and_score))
    constant = preset("scenes", "constant-box")
    runs.append((Run("constant-box", "blind", "constant box", constant), 1, score_as_it_is))
    for name in shipped_checkpoints("scenes"):
        runs.append((Run(name.replace("/", "-"), "shipped", name, preset("scenes")), 1, score_shipped))
    return runs


def main() -> None:
    """Run what has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/scenes", help="drawn where it is not there")
    parser.add_argument("--out", type=Path, default=Path("runs/small"))
    parser.add_argument("--only", nargs="*", help="names of runs; default: all")
    options = parser.parse_args()
    prepare_data(set_fields(preset("scenes"), data__root=options.data))
    for run, seeds, do in plan():
        run = replace(run, config=set_fields(run.config, data__root=options.data))
        for seed in range(seeds):
            path = options.out / "results" / f"{run.name}-{seed}.pkl"
            if path.exists() or (options.only and run.name not in options.only):
                continue
            print(f"\n{run.name}, seed {seed}", flush=True)
            found = do(run, seed, options.out) | {"device": str(default_device()).upper()}
            save_pickle(path, found)
            scores = [
                f"{split} {r['miou']:.3f} / {r['acc@0.5']:.3f}" for split, r in found["results"].items()
            ]
            print(f"{run.name}: mIoU / Acc@0.5: {', '.join(scores)}", flush=True)


if __name__ == "__main__":
    main()
