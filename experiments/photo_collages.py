"""What collages and a closer look bring: three short trainings, scored on images and on held-out collages.

    python -m vg_utils prepare phrases ... --collages 4000 --root data/collages
    python -m experiments.photo_collages --photographs DIR --data data/collages --out runs/collages

`--photographs` holds what `prepare phrases` was given: `instances.json`, `captions.json` and `images/`.
Held-out collages join two images of val. Mostly both have captions about a thing of the same class, so that
its name does not tell which is meant. Writes `experiments/photo_collages.json`, which RESULTS.md reads; a run
that is in it is not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.lengths import length_by_probe
from experiments.photos import TOGETHER, Run, holder, tell
from vg_utils.data import GroundingExample, load_examples
from vg_utils.data.phrases.collages import PREFIX, pair_up
from vg_utils.data.phrases.reading import class_weights, read_captions, read_pictures
from vg_utils.data.phrases.writing import (
    Summary,
    make_some,
    make_some_collages,
    to_records,
    with_collages,
    write_some,
)
from vg_utils.data.refer_files import read_instances, write_refer
from vg_utils.devices import default_device
from vg_utils.evaluation.runs import evaluate
from vg_utils.files import write_atomically
from vg_utils.predictor import Grounder
from vg_utils.training.engine import fit

RESULTS = Path(__file__).with_suffix(".json")
HELD_OUT, SEED, FIRST_ID = 300, 7, 10**7  # collages of val, and the seed and the first id of them
CHANGES = {key: value for key, value in TOGETHER.items() if not key.startswith("train__")}
CHANGES["train__text_lr"] = 2e-5  # of a batch of 64
RUNS = {  # name: (label, whether it sees collages, how many looks it takes at its box)
    "base": ("images alone", False, 0),
    "collages": ("with collages", True, 0),
    "both": ("with collages, and a closer look", True, 2),
}


def held_out(photographs: Path, data: Path, root: Path) -> list[GroundingExample]:
    """Collages of val's images with their phrases, written to `root` as a data set of its own."""
    path, captions = photographs / "instances.json", read_captions(photographs / "captions.json")
    records, ids = read_instances(path), {example.image_id for example in load_examples(data, "val")}
    pictures = [
        p for p in read_pictures(records, path, photographs / "images", captions) if p.image_id in ids
    ]
    weights = class_weights(pictures)
    sheets = list(pair_up(pictures, make_some(pictures, 0, weights), HELD_OUT, SEED, FIRST_ID))
    made = make_some_collages(sheets, SEED, weights)
    told = [any(phrase.family == "caption" for phrase in each.phrases) for each in made]
    sheets, made = ([x for x, keep in zip(some, told, strict=True) if keep] for some in (sheets, made))
    records = with_collages({**records, "images": [], "annotations": []}, sheets)
    splits = {sheet.image_id: "val" for sheet in sheets}
    write_some(sheets, root / "images")
    write_refer(root, "umd", *to_records(records, made, splits, {}, Summary(root)))
    return load_examples(root, "val")


def probe(name: str, options: argparse.Namespace, pairs: Sequence[GroundingExample]) -> dict:
    """Train one of `RUNS` for its minutes, and score it."""
    label, collages, looks = RUNS[name]
    run = Run(name, "probe", label, changes=CHANGES | {"model__dense_grounder__refinements": looks})
    config = run.config(0, options.data)
    train, val = (load_examples(options.data, split) for split in ("train", "val"))
    if not collages:
        train = [example for example in train if not Path(example.image).name.startswith(PREFIX)]
    device = default_device()
    hold = holder(config, device, options.workers)
    splits = {"train": hold(train), "val": hold(val)}
    kept = options.out / "lengths" / f"{run.name}-{config.train.seed}.json"
    length = length_by_probe(config, options.minutes * run.share, splits, kept)
    config = replace(config, train=replace(config.train, **length))
    history = fit(config, options.out / name, True, progress=False, splits=splits, on_epoch=tell)
    grounder = Grounder.load(options.out / name, device)
    seconds = sum(epoch["seconds"] for epoch in history)
    found = {"label": label, "images": len(train), "phrases": sum(len(x.expressions) for x in train)}
    found |= {"seen": length["epochs"] * length["epoch_images"], "seconds": seconds}
    for asked, examples in (("val", val), ("pairs", pairs)):
        rows, results, _ = evaluate(grounder, examples, asked, "val", similarity=False)
        found[asked] = {key: results[key] for key in ("n_expressions", "miou", "acc@0.5", "acc@0.75")}
        hits = (rows["iou"] >= 0.5).groupby(rows["family"]).mean()
        found[asked]["by"] = {family: float(share) for family, share in hits.items()}
    return found


def main() -> None:
    """Read the command line; train and score what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="what `prepare phrases` was given")
    parser.add_argument("--data", type=Path, required=True, help="made by `prepare phrases --collages`")
    parser.add_argument("--out", type=Path, default=Path("runs/collages"))
    parser.add_argument("--minutes", type=float, default=3.3, help="of training of a run")
    parser.add_argument("--workers", type=int, default=8, help="decoding processes")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    pairs = held_out(options.photographs, options.data, options.out / "held-out")
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for name in options.only:
        if name not in found["runs"]:
            run = probe(name, options, pairs) | {"device": device, "minutes": options.minutes}
            found["runs"][name] = run
            write_atomically(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
            print(f"{run['label']}: val {run['val']['acc@0.5']:.3f}, pairs {run['pairs']['acc@0.5']:.3f}")


if __name__ == "__main__":
    main()
