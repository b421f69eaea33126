"""The section "On photographs" of RESULTS.md, from `experiments/photos.pkl` and the card of the backbone.

    python -m experiments.photos --data data/photos --people PEOPLE --out runs/photos
    python -m experiments.photos --data data/photos --people PEOPLE --out runs/photos --untrained
    python -m experiments.report_photos --gather runs/photos     # adds the results to experiments/photos.pkl
    python -m experiments.report                                 # writes the page
    python -m experiments.report_photos --short                  # prints the table of the README

People's phrases and made ones never share a column.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import report_text as text
from experiments.photo_results import GROUPS, RESULTS, gather, load, pooled, sharing_columns
from experiments.photos import LOOKED_AT, PEOPLE, study
from experiments.report_tables import (
    Column,
    difference,
    field,
    fill,
    interval,
    intervals,
    minutes,
    seeds,
    share,
    table,
)
from experiments.results import FLAGSHIP, ResultsError
from vg_utils.data import DataError
from vg_utils.data.records import read_json
from vg_utils.files import write_atomically

ROOT = Path(__file__).parents[1]
CARD = ROOT / "vg_utils/weights/photos.json"
PRESENCE, COLLAGES = ROOT / "experiments/photo_presence.json", ROOT / "experiments/photo_collages.json"
BAR = {"acc@0.5": 0.64, "miou": 0.56}  # of people's phrases, set before any run
PRESENCE_BAR = 0.95  # AUROC on people's photographs, likewise
KINDS_OF = ("long", "dense-grounder", "clip-rpn-tokens")  # by kind of phrase
SHORT = {  # in the README, and where the page opens
    "long": "`photos/dense-grounder`",
    "dense-grounder": "without collages and closer look, 4 minutes, 3 seeds",
    "clip-rpn-tokens": "`clip-rpn-attention`",
    "text-only": "sees only the phrase",
    "constant-box": "one box for all",
}
QUESTIONS = {  # of the card: (what is asked, of how many)
    "name@1": ("name of a crop, by the nearest of all class names", "crops"),
    "name@1_mean_of_classes": ("the same, mean over classes", "crops"),
    "image_to_text@1": ("caption of an image: R@1", "pictures"),
    "text_to_image@1": ("image of a caption: R@1", "captions"),
    "image_to_text@5": ("caption of an image: R@5", "pictures"),
    "text_to_image@5": ("image of a caption: R@5", "captions"),
}


def section(
    runs: Sequence[dict],
    card: dict | None = None,
    presence: dict | None = None,
    collages: dict | None = None,
) -> str:
    """The whole section; nothing where there are no runs.

    Args:
        runs: of `photos.pkl`.
        card: of the backbone, as its pretraining wrote it.
        presence: as `experiments.photo_presence` wrote it.
        collages: as `experiments.photo_collages` wrote it.
    """
    if not runs:
        return ""
    made, people = pooled(runs, "test"), pooled(runs, PEOPLE)
    parts = [
        opening(people),
        text.PHOTOS.format(commands="\n".join(sorted({run["command"] for run in runs}))),
        data_of(runs),
        asked_by_people(people, made),
        on_presence(presence) if presence else "",
        on_made(made),
        on_collages(collages) if collages else "",
        by_kind(runs),
        ablations(made, people),
        of_backbone(card) if card else "",
        not_run(runs),
    ]
    return "\n\n".join(part for part in parts if part)


def opening(people: Sequence[dict]) -> str:
    """The table that the page opens with: a few systems on people's phrases."""
    rows = [line for line in people if line["name"] in SHORT]
    columns: dict[str, Column] = {"system": lambda r: SHORT[r["name"]]}
    columns |= {name: field(key, "{:.3f}") for name, key in text.SCORES.items()}
    columns |= {"interval": lambda r: f"[{r['acc@0.5_low']:.3f}, {r['acc@0.5_high']:.3f}]"}
    columns |= {"minutes": lambda r: minutes(r) + (f" on {r['gpus']} GPUs" if r["gpus"] > 1 else "")}
    return f"{text.IN_SHORT.format(n=rows[0]['n'])}\n\n{table(rows, columns)}"


def of_files(results: Path = RESULTS) -> str:
    """The section, from a file of results and what stands in the project beside it."""
    return section(load(results), *map(read_numbers, (CARD, PRESENCE, COLLAGES)))


def data_of(runs: Sequence[dict]) -> str:
    """How much there was to train on and to ask, and for how long it was trained."""
    sizes = next((run["data"] for run in runs if "data" in run), {})
    said = [
        f"{of['pictures']:,} of {split} with {of['phrases']:,} phrases and {of['absent']:,} that fit nothing"
        for split, of in sizes.items()
    ]
    data = f"Photographs: {'; '.join(said)}. " if said else ""
    trained = [run for run in runs if run["train_seconds"]]
    hours = sum(run["train_seconds"] * run["gpus"] for run in trained) / 3600
    devices = ", ".join(sorted({run["device"] for run in trained}))
    return fill(
        f"{data}Device: {devices}. {len(trained)} trainings took {hours:.1f} hours of a GPU together."
    )


def name_of(line: dict) -> str:
    return f"**{line['label']}**" if line["name"] == FLAGSHIP else line["label"]


def asked_by_people(people: Sequence[dict], made: Sequence[dict]) -> str:
    """The table of people's phrases, and whether the bar was reached."""
    rows = [line for line in people if line["group"] in GROUPS]
    columns: dict[str, Column] = {"system": name_of, **intervals("miou", "acc@0.5")}
    columns |= {"difference in Acc@0.5": lambda r: difference(r, "acc@0.5"), "seeds": seeds}
    lead = text.PEOPLE.format(n=rows[0]["n"], images=rows[0]["n_images"])
    return f"### People's phrases\n\n{lead}\n\n{table(rows, columns)}\n\n{fill(verdict(people, made))}"


def verdict(people: Sequence[dict], made: Sequence[dict]) -> str:
    """Whether the bar was reached, and what a longer training brought."""
    of_people, of_made = ({line["name"]: line for line in lines} for lines in (people, made))
    best = of_people.get("long", of_people[FLAGSHIP])  # the one that is shipped, whichever scores more
    reached = all(best[key] >= least for key, least in BAR.items())
    bar = f"Acc@0.5 of {BAR['acc@0.5']:.2f} and mIoU of {BAR['miou']:.2f}"
    said = f"The bar that was set before, {bar}, was {'reached' if reached else '**not** reached'}. "
    half = (best["acc@0.5_high"] - best["acc@0.5_low"]) / 2
    said += f"So few phrases say little: the interval of {best['label']} is ±{half:.2f} wide. "
    longer = {"long-first": "Twice as long on two GPUs", "long-second": "Later phrases, longer"}
    longer["long"] = "Collages and a closer look, still longer"
    for name, what in longer.items():
        if name in of_people and name in of_made:
            moved = [
                f"{lines[FLAGSHIP]['acc@0.5']:.3f} to {lines[name]['acc@0.5']:.3f}"
                for lines in (of_made, of_people)
            ]
            said += f"{what} took Acc@0.5 of made phrases from {moved[0]}, of people's from {moved[1]}. "
    return said.strip()


def on_presence(found: dict) -> str:
    """How well presence tells which categories are in people's photographs."""
    low, high = found["presence_auroc_ci95"]
    said = text.PRESENCE.format(**found, low=low, high=high)
    if not found["all_objects_have_boxes"]:
        said += f" {text.SEEN_BY_EYE.format(**found)}"
    reached = found["presence_auroc"] >= PRESENCE_BAR
    said += (
        f" The bar that was set before, {PRESENCE_BAR}, was {'reached' if reached else '**not** reached'}."
    )
    return f"### Presence on people's photographs\n\n{fill(said)}"


def on_made(made: Sequence[dict]) -> str:
    """The table of made phrases, with what a system cost."""
    rows = [line for line in made if line["group"] in GROUPS]
    columns: dict[str, Column] = {"system": name_of, **intervals("miou", "acc@0.5")}
    columns |= {"difference in Acc@0.5": lambda r: difference(r, "acc@0.5")}
    columns |= {"presence AUROC": lambda r: share(r["presence_auroc"]), "minutes": minutes}
    columns |= {"GPUs": lambda r: str(r["gpus"]) if r["gpus"] else "-", "seeds": seeds}
    lead = text.ON_MADE.format(n=rows[0]["n"], images=rows[0]["n_images"])
    if any(row["group"] == "training-free" for row in rows):
        lead += "\n\n" + text.ORACLE.format(looked_at=LOOKED_AT)
    return f"### Made phrases\n\n{lead}\n\n{table(rows, columns)}"


def on_collages(found: dict) -> str:
    """What collages and a closer look bring, on val and on collages of its images."""
    rows = list(found["runs"].values())
    said = text.COLLAGES.format(
        minutes=rows[0]["minutes"], **{f"n_{of}": rows[0][of]["n_expressions"] for of in ("val", "pairs")}
    )
    columns: dict[str, Column] = {"trained": field("label")}
    for asked, name in (("val", "images"), ("pairs", "collages")):
        for key, title in (("miou", "mIoU"), ("acc@0.5", "Acc@0.5"), ("acc@0.75", "Acc@0.75")):
            columns[f"{name}: {title}"] = _of(asked, key)
    columns["collages: captions, Acc@0.5"] = lambda r: share(r["pairs"]["by"]["caption"])
    columns["images seen"] = field("seen", "{:,}")
    return f"### Telling things of one class apart\n\n{fill(said)}\n\n{table(rows, columns)}"


def _of(asked: str, key: str) -> Column:
    return lambda r: share(r[asked][key])


def short(runs: Sequence[dict]) -> str:
    """The small table of the README: a few systems, people's phrases first."""
    made = {line["name"]: line for line in pooled(runs, "test")}
    rows = [line for line in pooled(runs, PEOPLE) if line["name"] in SHORT]
    columns: dict[str, Column] = {"": lambda r: SHORT[r["name"]]}
    columns |= {f"people's: {name}": _both(key) for name, key in text.SCORES.items()}
    columns |= {f"made: {name}": _both(key, made) for name, key in text.SCORES.items()}
    return table(rows, columns)


def _both(key: str, asked: dict[str, dict] | None = None) -> Column:
    return lambda r: interval(asked[r["name"]] if asked else r, key)


def by_kind(runs: Sequence[dict]) -> str:
    """Acc@0.5 by kind of made phrase, means over seeds."""
    same = {name: [run for run in runs if run["name"] == name] for name in KINDS_OF}
    same = {name: some for name, some in same.items() if some}
    frames = {some[0]["label"]: [run["by"]["test"]["family"] for run in some] for some in same.values()}
    first = next(iter(frames.values()))[0]
    rows = [
        {"kind": kind, "n": int(first.loc[kind, "n"])}
        | {label: float(np.mean([f.loc[kind, "acc@0.5"] for f in some])) for label, some in frames.items()}
        for kind in first.index
    ]
    rows.sort(key=lambda row: -row[next(iter(frames))])
    columns: dict[str, Column] = {"kind": field("kind"), "phrases": field("n", "{:,}")}
    columns |= {label: field(label, "{:.3f}") for label in frames}
    lead = fill(text.BY_KIND.format(best=rows[0]["kind"], worst=rows[-1]["kind"]))
    return f"### By kind of made phrase\n\n{lead}\n\n{table(rows, columns)}"


def ablations(made: Sequence[dict], people: Sequence[dict]) -> str:
    """One change each; made and people's phrases in columns of their own."""
    asked = {line["name"]: line for line in people}
    rows = [line for line in made if line["group"] == "ablation" or line["name"] == FLAGSHIP]
    if len(rows) < 2:
        return ""
    columns: dict[str, Column] = {"change": name_of, "made: mIoU": lambda r: interval(r, "miou")}
    columns |= {f"made: difference in {name}": _moved(key) for name, key in text.SCORES.items()}
    columns |= {"people's: mIoU": lambda r: interval(asked[r["name"]], "miou")}
    columns |= {f"people's: difference in {name}": _moved(key, asked) for name, key in text.SCORES.items()}
    changed = [asked[row["name"]] for row in rows if row["name"] != FLAGSHIP]
    lost = sorted(changed, key=lambda line: line["miou_difference"])
    said = [f"*{line['label']}* ({line['miou_difference']:+.3f})" for line in lost[:2]]
    sure = [f"*{line['label']}*" for line in lost if line["miou_difference_high"] < 0]
    lead = (
        f"On people's phrases mIoU falls most by {', then '.join(said)}. Those whose interval of "
        f"people's mIoU excludes 0: {', '.join(sure) or 'none'}; about the others "
        f"{changed[0]['n']} phrases decide nothing."
    )
    return f"### Ablations on photographs\n\n{text.ABLATED}\n\n{fill(lead)}\n\n{table(rows, columns)}"


def _moved(key: str, asked: dict[str, dict] | None = None) -> Column:
    return lambda r: difference(asked[r["name"]] if asked else r, key)


def of_backbone(card: dict) -> str:
    """What the backbone knows before it grounds anything, from its card."""
    before, after, small = (card[key] for key in ("before", "after", "after_in_8_bits"))
    rows = [
        {
            "asked": f"{asked} ({small[of]:,} {of})",
            "before": before[key],
            "after": after[key],
            "8": small[key],
        }
        for key, (asked, of) in QUESTIONS.items()
    ]
    columns: dict[str, Column] = {"question": field("asked"), "before": field("before", "{:.3f}")}
    columns |= {"after": field("after", "{:.3f}"), "after, in 8 bits (shipped)": field("8", "{:.3f}")}
    lead = text.PHOTO_BACKBONE.format(
        minutes=card["minutes"],
        device=card["device"],
        megabytes=card["bytes"]["file"] / 1e6,
        **card["learned_from"],
    )
    return f"### The backbone for photographs\n\n{fill(lead)}\n\n{table(rows, columns)}"


def not_run(runs: Sequence[dict]) -> str:
    """What the study has and the results have not."""
    there = {run["name"] for run in runs}
    missing = [run.label for run in study() if run.name not in there]
    if not any(run["group"] == "training-free" for run in runs):
        missing.append("detector-clip with the annotated boxes (`--untrained`)")
    return fill(f"Not run yet: {', '.join(missing)}.") if missing else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; add results to the file, or print the short table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gather", type=Path, nargs="+", metavar="DIR", help="of the study, to add")
    parser.add_argument("--short", action="store_true", help="print the table of the README")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.short:
        print(short(load(options.results)))
        return 0
    if not options.gather:
        parser.error("expected --gather or --short")
    try:
        runs = gather(options.results, options.gather)
    except (ResultsError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    write_atomically(options.results, pickle.dumps(sharing_columns(runs), protocol=4))
    print(f"{options.results}: {len(runs)} runs, {options.results.stat().st_size:,} bytes")
    return 0


def read_numbers(path: Path) -> dict | None:
    """What a command wrote as JSON, `CARD` or `PRESENCE`; None where it has not run."""
    return read_json(path, "numbers") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
