"""The results of the study in one small file: what `experiments.report` reads, and nothing else.

`gather` boils the pickles of single runs down. `results.pkl` is plain data, lists of dicts, so that any
version of Python and pandas reads it:

- `commands`: that trained and scored;
- `runs`: one dict a run and seed: what is in `OF_A_RUN`;
- `results`: one a run, seed and split: the results as `evaluate --json` writes them, without intervals;
- `pooled`: one a run and split: means over seeds, with intervals, and the difference to its reference;
- `by`: one a run, split, grouping ("family", "length" ...) and group, means over seeds;
- `curves`: one a run and seed: lists of `epoch` and `val_miou`.
"""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vg_utils.evaluation.metrics import THRESHOLDS, bootstrap_ci
from vg_utils.pickles import read_pickle, write_pickle

MAX_BYTES = 1_500_000  # a repository carries the file for ever
MOST_EPOCHS = 60  # of a training whose val mIoU is kept
FLAGSHIP = "dense-grounder"
FROZEN = ", frozen"  # goes to the label of a frozen run: the system has the same label
UNCHANGED = "unchanged"  # label of the run that changes of a model are compared with, if there is one
OF_A_RUN = (
    "name",
    "group",
    "label",
    "model",
    "seed",
    "images",
    "device",
    "train_seconds",
    "pairs_per_second",
)
OF_A_RUN += ("val_miou", "search_novel_miou", "parameters", "head_parameters", "trained_parameters")
NOT_MEANS = ("name", "seed", "split", "model", "dataset")


class ResultsError(ValueError):
    """Results that are missing, or do not belong together; the message says which."""


def gather(folders: Sequence[Path], flagship: str | None = None) -> dict:
    """The content of `results.pkl` from directories of the study.

    Args:
        folders: each holds `results/`, with a pickle of every run and seed, or the pickles themselves.
        flagship: name of the run that all others are compared with; by default the system that was best on
            val, a dense-grounder if there is one.

    Raises:
        ResultsError: no results, no flagship, or seeds of a run that were asked different phrases.
    """
    jobs = read_jobs(folders)
    by_name: dict[str, list[dict]] = defaultdict(list)
    for job in jobs:
        by_name[job["name"]].append(job)
    flagship = flagship or find_flagship(jobs)
    if flagship not in by_name:
        raise ResultsError(f"flagship {flagship!r}: expected one of the runs {sorted(by_name)}")
    references = {name: reference_of(group[0], jobs, flagship) for name, group in by_name.items()}
    splits = dict.fromkeys(split for job in jobs for split in job["results"])
    return {
        "flagship": flagship,
        "commands": sorted({job["command"] for job in jobs if "command" in job}),
        "runs": [{key: plain(job.get(key)) for key in OF_A_RUN} for job in jobs],
        "results": [
            {"name": job["name"], "seed": job["seed"], "split": split} | scalars(results)
            for job in jobs
            for split, results in job["results"].items()
        ],
        "pooled": [line for split in splits for line in pool_split(by_name, split, references)],
        "by": [line for name, group in by_name.items() for line in breakdowns(name, group)],
        "curves": [{"name": job["name"], "seed": job["seed"], **curve(job["history"])} for job in jobs],
    }


def read_jobs(folders: Sequence[Path]) -> list[dict]:
    """The results of all runs and seeds, in the order of their names."""
    jobs = []
    for folder in folders:
        inside = folder / "results" if (folder / "results").is_dir() else folder
        jobs += [with_frames(read_pickle(path)) for path in sorted(inside.glob("*.pkl"))]
    if not jobs:
        raise ResultsError(f"expected pickles of runs in {', '.join(map(str, folders))}, found none")
    keys = [(job["name"], job["seed"]) for job in jobs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ResultsError(f"expected each run and seed once, found several times: {twice[:3]}")
    return jobs


def with_frames(job: dict) -> dict:
    """What is known of a run, its tables as frames again; those of `by` have their groups as index."""
    rows = {split: pd.DataFrame(table) for split, table in job["rows"].items()}
    by = {
        split: {name: pd.DataFrame(table).set_index(name) for name, table in tables.items()}
        for split, tables in job["by"].items()
    }
    return job | {"rows": rows, "by": by}


def find_flagship(jobs: Sequence[dict]) -> str:
    """Chosen on val, never on test: the best dense-grounder, or where there is none the best system."""
    systems = [job for job in jobs if job["group"] == "systems"]
    if not systems:
        raise ResultsError("expected a run of the group systems, found none: name the flagship")
    candidates = [job for job in systems if job["model"] == FLAGSHIP] or systems
    return max(candidates, key=lambda job: job["val_miou"])["name"]


def reference_of(job: dict, jobs: Sequence[dict], flagship: str) -> str:
    """The run that a run is compared with: the flagship, or for a change of a system that system as it is."""
    if job["group"] not in ("ablation", "loss"):
        return flagship
    same = [other for other in jobs if other["model"] == job["model"]]
    unchanged = [other["name"] for other in same if other["label"] == UNCHANGED]
    systems = [other["name"] for other in same if other["group"] == "systems"]
    if flagship in systems:
        systems = [flagship]
    return [*unchanged, *systems, flagship][0]


def pool_split(by_name: dict[str, list[dict]], split: str, references: dict[str, str]) -> list[dict]:
    """What is known of every run on one split: means, intervals, and the difference to its reference."""
    asked = {name: per_expression(jobs, split) for name, jobs in by_name.items() if split in jobs[0]["rows"]}
    lines = []
    for name, frame in asked.items():
        line = {"name": name, "split": split, "reference": references[name]}
        # The pickles' IoUs are rounded to half precision, their results are not.
        line |= (
            pool(frame) | exact_means(by_name[name], split) | {"seed_spread": spread(by_name[name], split)}
        )
        if references[name] != name:
            line |= compare(frame, asked[references[name]], f"{name} and {references[name]}")
        lines.append(line)
    return lines


def per_expression(jobs: Sequence[dict], split: str) -> pd.DataFrame:
    """Of each expression its image, and the mean over seeds of its IoU and of whether it was found."""
    frames = [job["rows"][split].set_index("sent_id").sort_index() for job in jobs]
    for job, frame in zip(jobs, frames, strict=True):
        if not frame.index.equals(frames[0].index):
            raise ResultsError(f"{job['name']}, seed {job['seed']}, {split}: asked other phrases than seed 0")
    ious = np.stack([frame["iou"].to_numpy(float) for frame in frames])  # (seeds, N)
    found = {f"acc@{t}": (ious >= t).mean(axis=0) for t in THRESHOLDS}
    columns = {"image_id": frames[0]["image_id"].to_numpy(), "miou": ious.mean(axis=0)} | found
    return pd.DataFrame(columns, index=frames[0].index)


def pool(frame: pd.DataFrame) -> dict:
    """Means, and intervals of mIoU and Acc@0.5 over images."""
    found = {name: float(frame[name].mean()) for name in frame if name != "image_id"}
    for name in ("miou", "acc@0.5"):
        found[f"{name}_low"], found[f"{name}_high"] = bootstrap_ci(frame[name], frame["image_id"])
    return found


def exact_means(jobs: Sequence[dict], split: str) -> dict:
    """mIoU and accuracies, means over seeds, which were all asked the same expressions."""
    names = ("miou", *(f"acc@{t}" for t in THRESHOLDS))
    return {name: float(np.mean([job["results"][split][name] for job in jobs])) for name in names}


def compare(frame: pd.DataFrame, reference: pd.DataFrame, names: str) -> dict:
    """Differences to the reference with intervals over images, on the expressions that both were asked."""
    both = frame.join(reference, how="inner", rsuffix=" of the reference")
    if both.empty:
        raise ResultsError(f"{names}: expected some expressions that both were asked, found none")
    found = {"n_paired": len(both)}
    for column in ("miou", "acc@0.5"):
        difference = both[column] - both[f"{column} of the reference"]
        found[f"{column}_difference"] = float(difference.mean())
        low, high = bootstrap_ci(difference, both["image_id"])
        found[f"{column}_difference_low"], found[f"{column}_difference_high"] = low, high
    return found


def spread(jobs: Sequence[dict], split: str) -> float | None:
    """Standard deviation of the mIoU over seeds; None of a single one."""
    values = [job["results"][split]["miou"] for job in jobs]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def breakdowns(name: str, jobs: Sequence[dict]) -> list[dict]:
    """mIoU and Acc@0.5 of groups of expressions, means over seeds."""
    lines = []
    for split, tables in jobs[0]["by"].items():
        for by, first in tables.items():
            together = pd.concat([job["by"][split][by] for job in jobs]).groupby(level=0)
            means = together[["n", "miou", "acc@0.5"]].mean().loc[first.index]
            for group, values in means.iterrows():
                line = {"name": name, "split": split, "by": by, "group": str(group), "n": int(values["n"])}
                lines.append(line | {key: float(values[key]) for key in ("miou", "acc@0.5")})
    return lines


def curve(history: Sequence[dict]) -> dict[str, list]:
    """The val mIoU over the epochs, of long trainings some epochs only."""
    scored = [epoch for epoch in history if epoch.get("val_miou") is not None]
    chosen = np.linspace(0, len(scored) - 1, min(len(scored), MOST_EPOCHS)).round().astype(int).tolist()
    return {name: [plain(scored[i][name]) for i in chosen] for name in ("epoch", "val_miou")}


def scalars(results: dict) -> dict:
    """The numbers and names of an evaluation; its intervals are of one seed, and made anew over all."""
    kept = {key: plain(value) for key, value in results.items()}
    return {key: value for key, value in kept.items() if isinstance(value, (int, float, str))}


def plain(value):
    """Without numpy's types, which would tie the file to a version of numpy; NaN is None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def save(path: Path, gathered: dict) -> None:
    """Write `results.pkl`.

    Raises:
        ResultsError: it would be too large to commit.
    """
    size = len(pickle.dumps(gathered, protocol=4))
    if size > MAX_BYTES:
        raise ResultsError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {size:,}")
    write_pickle(path, gathered)


@dataclass(frozen=True)
class Study:
    """What `results.pkl` holds, as frames, with the runs of several seeds joined.

    Attributes:
        flagship: name of the run that others are compared with.
        commands: that trained and scored.
        runs: one line a run and seed.
        table: one line a run and split: of the run, means over seeds of every result, pooled intervals.
        by: see the top of this module.
        curves: likewise.
    """

    flagship: str
    commands: list[str]
    runs: pd.DataFrame
    table: pd.DataFrame
    by: pd.DataFrame
    curves: pd.DataFrame

    def rows(self, *groups: str, split: str = "test") -> list[dict]:
        """One dict a run of these groups, in the order of the groups and then the highest mIoU first."""
        table = self.table[self.table["split"] == split]
        parts = [table[table["group"] == group].sort_values("miou", ascending=False) for group in groups]
        return [row for part in parts for row in part.to_dict("records")]


def load(path: Path) -> Study:
    """Read `results.pkl`.

    Raises:
        ResultsError: there is no such file.
    """
    if not path.is_file():
        raise ResultsError(f"{path}: no such file; make it with python -m experiments.report --gather RUNS")
    held = read_pickle(path)
    runs, results, pooled = (pd.DataFrame(held[key]) for key in ("runs", "results", "pooled"))
    numbers = runs.groupby("name", sort=False).mean(numeric_only=True).drop(columns="seed")
    words = runs.groupby("name", sort=False)[["group", "label", "model"]].first()
    # One name in two tables is two runs: a figure of both has to tell them apart.
    frozen = words["group"] == "frozen"
    words["label"] = words["label"].where(~frozen, words["label"] + FROZEN)
    systems = words.join(numbers).join(runs.groupby("name").size().rename("seeds"))
    means = results.drop(columns=[c for c in NOT_MEANS if c in results and c not in ("name", "split")])
    means = means.groupby(["name", "split"]).mean(numeric_only=True)
    means = means.drop(columns=[c for c in means if c in pooled])  # pooled has them with intervals
    table = pooled.merge(systems, on="name").merge(means, on=["name", "split"])
    return Study(
        held["flagship"],
        held["commands"],
        runs,
        table,
        pd.DataFrame(held["by"]),
        pd.DataFrame(held["curves"]),
    )
