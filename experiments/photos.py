"""Train and score every system on photographs: `python -m experiments.photos --out runs/photos`.

The data are phrases made from boxes (`python -m vg_utils prepare phrases`); what is chosen is chosen on their
val. People's phrases, a folder in RefCOCOg's layout, are asked once of each finished run: `--people`. Every
run is a process of its own; with several GPUs, or `--slots` above 1, they go side by side. Give the same
command again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments.run import add_split, costs, outcome, visible_gpus
from vg_utils.config import Config, set_fields
from vg_utils.data import GroundingExample, load_examples
from vg_utils.data.resident import ResidentPictures
from vg_utils.evaluation.runs import evaluate
from vg_utils.models.backbones import build_backbone
from vg_utils.models.checkpoints import save_pickle
from vg_utils.predictor import Grounder, default_device
from vg_utils.presets import preset

COMMAND = "python -m experiments.photos --data data/photos --out runs/photos"
MADE, PEOPLE = ("val", "test"), "people"  # what is asked; people's phrases are all in one
EPOCH = 4_096  # images between two looks at val
# Images a second that a model trains on where two runs share an H100: makes minutes of images.
IMAGES_PER_SECOND = {"dense-grounder": 300, "transvg": 300, "clip-hrnet": 300, "clip-rpn-attention": 400}
IMAGES_PER_SECOND |= {"text-only": 2_000}


@dataclass(frozen=True)
class Run:
    """A system as it is trained on photographs.

    Attributes:
        name: of its directory.
        group: table it belongs to.
        label: what it is called there.
        model: name in `vg_utils.models`.
        changes: of the preset `photos`, as `set_fields` takes them.
        share: of the minutes that a system has.
        seeds: how many times it is trained.
        families: kinds of made phrases that it learns from; empty for all.
    """

    name: str
    group: str
    label: str
    model: str = "dense-grounder"
    changes: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    seeds: int = 1
    without: tuple[str, ...] = ()

    def config(self, seed: int, data: Path, minutes: float) -> Config:
        """Its settings, with as many epochs as fill its share of the minutes."""
        config = set_fields(preset("photos", self.model), **self.changes)
        images = IMAGES_PER_SECOND.get(self.model, 300) * 60 * minutes * self.share
        length = {"epochs": max(1, round(images / EPOCH)), "epoch_images": EPOCH, "seed": seed}
        return replace(
            config,
            data=replace(config.data, root=str(data)),
            train=replace(config.train, **length),
        )


def study() -> list[Run]:
    """All runs, those that the others are measured by first."""
    flagship = Run("dense-grounder", "systems", "dense-grounder", seeds=3)
    short = {"share": 0.4}
    return [
        flagship,
        Run("clip-rpn-tokens", "systems", "clip-rpn-attention (words)", "clip-rpn-attention"),
        Run("clip-hrnet", "systems", "clip-hrnet", "clip-hrnet"),
        Run("transvg", "systems", "transvg", "transvg"),
        Run("text-only", "blind", "text-only", "text-only", share=0.2),
        Run("unchanged", "ablation", "unchanged", **short),
        Run(
            "no-relations",
            "ablation",
            "no relations, no interactions",
            without=("relation", "interaction"),
            **short,
        ),
        Run("no-captions", "ablation", "no captions", without=("caption",), **short),
        Run(
            "frozen-text",
            "ablation",
            "text encoder frozen",
            changes={"model__clip__text_tuning": "frozen"},
            **short,
        ),
        Run("small", "ablation", "224 pixels", changes={"model__image_size": 224}, **short),
    ]


def without(examples: Sequence[GroundingExample], families: Sequence[str]) -> list[GroundingExample]:
    """The examples without expressions of these families; images that have no other are left out."""
    kept = []
    for example in examples:
        expressions = tuple(x for x in example.expressions if x.family not in families)
        if expressions:
            kept.append(replace(example, expressions=expressions))
    return kept


def train_and_score(run: Run, seed: int, options: argparse.Namespace) -> dict:
    """Train for about its minutes, and score the best weights on made phrases and on people's."""
    from vg_utils.training.engine import fit

    config = run.config(seed, options.data, options.minutes)
    examples = {split: load_examples(options.data, split) for split in ("train", *MADE)}
    size, device = config.model.image_size, default_device()
    tokenizer = build_backbone(replace(config.model.clip, weights="random"), size).tokenizer
    hold = {"size": size, "tokenizer": tokenizer, "device": device, "workers": options.workers}
    splits = {"train": ResidentPictures(without(examples["train"], run.without), **hold)}
    splits["val"] = ResidentPictures(examples["val"], **hold)
    started = time.perf_counter()
    history = fit(config, options.out / "runs" / f"{run.name}-{seed}", True, progress=False, splits=splits)
    seconds = time.perf_counter() - started
    grounder = Grounder.load(options.out / "runs" / f"{run.name}-{seed}", device)
    found = outcome(run, seed, COMMAND) | costs(grounder.model, history, seconds)
    for split in MADE:
        add_split(
            found, split, *evaluate(grounder, examples[split], "photographs", split, similarity=False)[:2]
        )
    if options.people:
        for name, people in people_of(options.people).items():
            add_split(found, name, *evaluate(grounder, people, name, "all", similarity=False)[:2])
    return found


def people_of(root: Path) -> dict[str, list[GroundingExample]]:
    """People's phrases: all splits of a folder, since nothing here was trained on any of them."""
    return {PEOPLE: [example for split in ("train", "val", "test") for example in load_examples(root, split)]}


def work(options: argparse.Namespace) -> None:
    """All runs with their seeds, those that are done already left out, side by side."""
    jobs: queue.Queue[tuple[Run, int]] = queue.Queue()
    for run in study():
        for seed in range(run.seeds):
            done = options.out / "results" / f"{run.name}-{seed}.pkl"
            if not done.is_file() and (not options.only or run.name in options.only):
                jobs.put((run, seed))
    gpus = visible_gpus() or [""]

    def take(gpu: str) -> None:
        while True:
            try:
                run, seed = jobs.get_nowait()
            except queue.Empty:
                return
            command = [
                sys.executable,
                "-m",
                "experiments.photos",
                *sys.argv[1:],
                "--run",
                f"{run.name}:{seed}",
            ]
            log = options.out / "logs" / f"{run.name}-{seed}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("w") as file:
                environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
                status = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
            print(f"{run.name}-{seed}: {'done' if status == 0 else 'FAILED, see ' + str(log)}", flush=True)

    threads = [threading.Thread(target=take, args=(gpu,)) for gpu in gpus for _ in range(options.slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Read the command line; train and score all runs, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/photos"), help="made by `prepare phrases`")
    parser.add_argument(
        "--people", type=Path, help="people's phrases, in RefCOCOg's layout, asked at the end"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--minutes", type=float, default=20.0, help="of training of a system")
    parser.add_argument("--slots", type=int, default=1, help="runs side by side on a GPU")
    parser.add_argument("--workers", type=int, default=4, help="decoding processes of a run")
    parser.add_argument("--only", nargs="*", help="names of runs; default: all")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.run:
        work(options)
        return
    name, _, seed = options.run.partition(":")
    (run,) = [run for run in study() if run.name == name]
    found = train_and_score(run, int(seed), options)
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    save_pickle(options.out / "results" / f"{name}-{seed}.pkl", found)
    scores = {split: f"{r['miou']:.3f} / {r['acc@0.5']:.3f}" for split, r in found["results"].items()}
    print(f"{name}-{seed}: {found['train_seconds']:.0f} s, {scores}", flush=True)


if __name__ == "__main__":
    main()
