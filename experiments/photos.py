"""Train and score every system on photographs: `python -m experiments.photos --out runs/photos`.

The data are phrases made from boxes (`python -m vg_utils prepare phrases`, with `--collages 8000` for the run
that is shipped, `long`); what is chosen is chosen on their val. People's phrases, a folder in RefCOCOg's
layout, are asked once of each finished run: `--people`. Every run is a process of its own; with several GPUs,
or `--slots` above 1, they go side by side. Give the same command again and it goes on where it stopped.
`--untrained` scores what has nothing to train, which a processor does in minutes, and
`python -m experiments.report_photos --gather` makes one file of all results.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.lengths import length_by_probe
from experiments.run import add_split, costs, visible_gpus
from vg_utils.config import Config, set_fields
from vg_utils.data import GroundingExample, load_examples
from vg_utils.data.resident import ResidentPictures
from vg_utils.devices import default_device
from vg_utils.evaluation.runs import evaluate, evaluate_constant, evaluate_detector
from vg_utils.models.backbones import build_backbone
from vg_utils.models.detector_clip import build_detector_clip
from vg_utils.models.photo import KEPT_WHOLE
from vg_utils.models.shipping import ship
from vg_utils.pickles import write_pickle
from vg_utils.predictor import Grounder
from vg_utils.presets import preset

COMMAND = "python -m experiments.photos --data data/photos --out runs/photos"
MADE, PEOPLE = ("val", "test"), "people"  # what is asked; people's phrases are all in one
LOOKED_AT = 40  # images of test that `detector-clip` is asked: on a processor it takes its time


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
        gpus: that train it together.
        without: kinds of made phrases that it does not learn from.
    """

    name: str
    group: str
    label: str
    model: str = "dense-grounder"
    changes: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    seeds: int = 1
    gpus: int = 1
    without: tuple[str, ...] = ()

    def config(self, seed: int, data: Path) -> Config:
        """Its settings; the number of epochs follows from the minutes."""
        config = set_fields(preset("photos", self.model), **self.changes, train__seed=seed)
        return replace(config, data=replace(config.data, root=str(data)))


TOGETHER = {
    "train__lr": 7e-4,  # of a batch of 128, by its root, as the other rates
    "train__backbone_lr": 2.8e-4,
    "train__text_lr": 2.8e-5,
    "model__clip__text_tuning": "full",
    "data__scale": (0.4, 2.0),  # who learns for longer needs more to see
    "data__jitter": 0.4,
}
RANK = 4  # of the change of the text encoder as it is shipped


def study() -> list[Run]:
    """All runs, those that take longest first."""
    short = {"share": 0.45}

    def ablation(name: str, label: str, **more: Any) -> Run:
        return Run(name, "ablation", label, **short, **more)

    full = {"model__clip__text_tuning": "full", "train__text_lr": 2e-5}
    random = {"model__clip__weights": "random", "model__clip__text_tuning": "full"}
    return [
        Run("long", "long", "dense-grounder, on two GPUs", changes=TOGETHER, gpus=2),
        Run("dense-grounder", "systems", "dense-grounder", seeds=3, **short),
        Run("clip-rpn-tokens", "systems", "clip-rpn-attention, words", "clip-rpn-attention", **short),
        Run("clip-hrnet", "systems", "clip-hrnet", "clip-hrnet", **short),
        Run("transvg", "systems", "transvg", "transvg", **short),
        ablation("no-captions", "without captions", without=("caption", "description")),
        ablation("text-full", "text encoder trained in full", changes=full),
        ablation("from-nothing", "encoders not pretrained", changes=random),
        ablation("small", "224 pixels", changes={"model__image_size": 224}),
        ablation("large", "416 pixels", changes={"model__image_size": 416}),
        ablation("no-relations", "without relations and interactions", without=("relation", "interaction")),
        ablation("text-frozen", "text encoder frozen", changes={"model__clip__text_tuning": "frozen"}),
        Run("text-only", "blind", "text-only", "text-only", share=0.15),
    ]


def without(examples: Sequence[GroundingExample], families: Sequence[str]) -> list[GroundingExample]:
    """The examples without expressions of these families; images that have no other are left out."""
    kept = []
    for example in examples:
        expressions = tuple(x for x in example.expressions if x.family not in families)
        if expressions:
            kept.append(replace(example, expressions=expressions))
    return kept


def holder(
    config: Config, device: torch.device, workers: int
) -> Callable[[Sequence[GroundingExample]], ResidentPictures]:
    """What puts the images of examples onto a device, as the model of these settings looks at them."""
    size = config.model.image_size
    tokenizer = build_backbone(replace(config.model.clip, weights="random"), size).tokenizer
    return partial(ResidentPictures, size=size, tokenizer=tokenizer, device=device, workers=workers)


def train_and_score(run: Run, seed: int, options: argparse.Namespace) -> dict | None:
    """Train for its minutes, and score the best weights on made phrases and on people's.

    Returns:
        what is known of the run; None in a process that only helped to train it.
    """
    from vg_utils.training.engine import fit

    config = run.config(seed, options.data)
    examples = {split: load_examples(options.data, split) for split in ("train", *MADE)}
    device = device_of_process()
    hold = holder(config, device, options.workers)
    splits: dict[str, Any] = {"train": hold(without(examples["train"], run.without))}
    splits["val"] = examples["val"] if run.gpus > 1 else hold(examples["val"])
    kept = options.out / "lengths" / f"{run.name}-{seed}.json"
    length = length_by_probe(config, options.minutes * run.share, splits, kept, run.gpus)
    config = replace(config, train=replace(config.train, **length))
    directory, started = options.out / "runs" / f"{run.name}-{seed}", time.perf_counter()
    history = fit(config, directory, True, progress=False, splits=splits, on_epoch=tell)
    seconds = time.perf_counter() - started
    if os.environ.get("RANK", "0") != "0":
        return None
    grounder = Grounder.load(directory, device)
    found = {key: getattr(run, key) for key in ("name", "group", "label", "model", "gpus")}
    found |= {"seed": seed, "command": COMMAND, "results": {}, "by": {}, "rows": {}}
    found |= costs(grounder.model, history, seconds)
    asked = {split: ("photographs", split, examples[split]) for split in MADE}
    if options.people:
        asked[PEOPLE] = ("people's phrases", "all", people_of(options.people))
    for split, (dataset, name, some) in asked.items():
        rows, results, _ = evaluate(grounder, some, dataset, name, similarity=False)
        add_split(found, split, rows, results)
    if run.gpus > 1:
        ship(directory, options.out / "shipped" / run.model, smallest=KEPT_WHOLE, rank=RANK)
    return found


def score_untrained(data: Path, people: Path | None) -> Iterator[dict]:
    """The box that is best on the phrases of train, and the package's backbone choosing a box.

    `detector-clip` chooses among all annotated boxes of an image, of the first `LOOKED_AT` images. People's
    phrases it is not asked: of their images only the boxes that somebody refers to may be known, which would
    make the choice too easy.
    """
    examples = {split: load_examples(data, split) for split in ("train", *MADE)}
    asked = {"test": ("photographs", "test", examples["test"])}
    of_people = {PEOPLE: ("people's phrases", "all", people_of(people))} if people else {}
    found = untrained("constant-box", "blind", "constant box", "constant-box")
    found["data"] = {split: sizes(some) for split, some in examples.items()}
    for split, (dataset, name, some) in (asked | of_people).items():
        add_split(found, split, *evaluate_constant(examples["train"], some, dataset, name)[:2])
    yield found
    for mode in ("crop", "global-local"):
        config = set_fields(preset("photos", "detector-clip"), model__detector_clip__mode=mode)
        detector = build_detector_clip(config.model, default_device())
        label = f"detector-clip, annotated boxes, {mode}"
        found = untrained(f"oracle-{mode}", "training-free", label, "detector-clip")
        for split, (dataset, name, some) in asked.items():
            some = some[:LOOKED_AT]
            rows, results, _ = evaluate_detector(detector, some, dataset, name, similarity=False)
            add_split(found, split, rows, results)
        yield found


def sizes(examples: Sequence[GroundingExample]) -> dict[str, int]:
    """How much there is."""
    phrases, absent = (sum(len(getattr(x, of)) for x in examples) for of in ("expressions", "absent"))
    return {"pictures": len(examples), "phrases": phrases, "absent": absent}


def untrained(name: str, group: str, label: str, model: str) -> dict:
    """What a run is that has no training."""
    found = {"name": name, "group": group, "label": label, "model": model, "gpus": 0, "seed": 0}
    found |= {"command": f"{COMMAND} --untrained", "results": {}, "by": {}, "rows": {}}
    return found | {"train_seconds": 0.0, "history": []}


def tell(epoch: dict) -> None:
    """A line for the log."""
    shown = ("epoch", "seconds", "train_loss", "train_acc@0.5", "val_miou", "val_acc@0.5")
    print({name: round(epoch[name], 4) for name in shown}, flush=True)


def device_of_process() -> torch.device:
    """The GPU of this process among those that train together."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def people_of(root: Path) -> list[GroundingExample]:
    """People's phrases: all splits of a folder, since nothing here was trained on any of them."""
    return [example for split in ("train", "val", "test") for example in load_examples(root, split)]


def work(options: argparse.Namespace) -> None:
    """All runs with their seeds, those that are done already left out, side by side."""
    jobs = [
        (run, seed)
        for run in study()
        for seed in range(run.seeds)
        if not options.only or run.name in options.only
    ]
    jobs = [job for job in jobs if not (options.out / "results" / f"{job[0].name}-{job[1]}.pkl").is_file()]
    waiting: queue.Queue[tuple[Run, int]] = queue.Queue()
    gpus, threads = visible_gpus() or [""], []

    def start(job: tuple[Run, int], gpu: str) -> None:
        name = f"{job[0].name}:{job[1]}"
        log = options.out / "logs" / f"{job[0].name}-{job[1]}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        together = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(job[0].gpus)]
        command = [sys.executable, *(together if job[0].gpus > 1 else []), "-m", "experiments.photos"]
        with log.open("w") as file:
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
            status = subprocess.run(
                [*command, *sys.argv[1:], "--job", name], env=environment, stdout=file, stderr=file
            ).returncode
        print(f"{name}: {'done' if status == 0 else f'FAILED, see {log}'}", flush=True)

    def take(gpu: str, first: tuple[Run, int] | None = None) -> None:
        if first:
            start(first, gpu)
            gpu = gpu.split(",")[0]
        while True:
            try:
                start(waiting.get_nowait(), gpu)
            except queue.Empty:
                return

    for job in jobs:
        if job[0].gpus > 1 and len(gpus) > job[0].gpus:
            group, gpus = gpus[: job[0].gpus], gpus[job[0].gpus :]
            threads.append(threading.Thread(target=take, args=(",".join(group), job)))
        else:
            waiting.put(job)
    threads += [threading.Thread(target=take, args=(gpu,)) for gpu in gpus for _ in range(options.slots)]
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
    parser.add_argument("--untrained", action="store_true", help="score what has nothing to train, no more")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.untrained:
        for found in score_untrained(options.data, options.people):
            write_pickle(options.out / "results" / f"{found['name']}-0.pkl", found)
            print(f"{found['name']}: {told(found)}", flush=True)
        return
    if not options.job:
        work(options)
        return
    name, _, seed = options.job.partition(":")
    (run,) = [run for run in study() if run.name == name]
    found = train_and_score(run, int(seed), options)
    if found is None:
        return
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    write_pickle(options.out / "results" / f"{name}-{seed}.pkl", found)
    print(f"{name}-{seed}: {found['train_seconds']:.0f} s, {told(found)}", flush=True)


def told(found: dict) -> dict[str, str]:
    """mIoU and Acc@0.5 by split, for the log."""
    return {split: f"{r['miou']:.3f} / {r['acc@0.5']:.3f}" for split, r in found["results"].items()}


if __name__ == "__main__":
    main()
