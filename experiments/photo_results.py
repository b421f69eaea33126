"""The file of results on photographs, `experiments/photos.pkl`: its runs, and what they say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from experiments.results import FLAGSHIP, ResultsError, pool_split, read_jobs, with_frames
from vg_utils.pickles import read_pickle, to_plain

RESULTS = Path(__file__).parent / "photos.pkl"
GROUPS = ("long", "systems", "training-free", "blind")


def load(path: Path = RESULTS) -> list[dict]:
    """What is known of each run and seed; an empty list where there is no such file."""
    return [with_frames(run) for run in read_pickle(path)] if path.is_file() else []


def gather(path: Path, folders: Sequence[Path]) -> list[dict]:
    """The runs of a file with those of these folders added; the same run and seed is replaced.

    Raises:
        ResultsError: the folders hold no results.
    """
    found = {(run["name"], run["seed"]): run for run in (*load(path), *read_jobs(folders))}
    return [found[key] for key in sorted(found)]


def sharing_columns(runs: Sequence[dict]) -> list[dict]:
    """The runs as plain data in which equal columns of rows are one list, which a pickle writes once."""
    seen: dict[tuple, list] = {}
    runs = to_plain(list(runs))
    for columns in (columns for run in runs for columns in run["rows"].values()):
        columns |= {name: seen.setdefault(tuple(column), column) for name, column in columns.items()}
    return runs


def pooled(runs: Iterable[dict], split: str) -> list[dict]:
    """One dict a run: means over seeds with intervals, and the difference to the flagship on one split.

    Runs of a group stand together, the best by mIoU first.
    """
    by_name: dict[str, list[dict]] = defaultdict(list)
    for run in runs:
        if split in run["results"]:
            by_name[run["name"]].append(run)
    if FLAGSHIP not in by_name:
        raise ResultsError(f"expected a run {FLAGSHIP!r} that was asked {split}, found {sorted(by_name)}")
    lines = pool_split(by_name, split, dict.fromkeys(by_name, FLAGSHIP))
    for line in lines:
        same = by_name[line["name"]]
        line |= {key: same[0][key] for key in ("group", "label", "gpus")} | {"seeds": len(same)}
        line["train_seconds"] = float(np.mean([run["train_seconds"] for run in same])) or None
        known = [run["results"][split].get("presence_auroc") for run in same]
        line["presence_auroc"] = None if None in known else float(np.mean(known))
        line["n"], line["n_images"] = (
            same[0]["results"][split][f"n_{of}"] for of in ("expressions", "images")
        )
    order = (*GROUPS, "ablation")
    return sorted(lines, key=lambda line: (order.index(line["group"]), -line["miou"]))
