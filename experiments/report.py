"""Write RESULTS.md and its figures from the files of results: `python -m experiments.report`.

    python -m experiments.run --out runs/study         # trains and scores everything
    python -m experiments.report --gather runs/study   # boils the results down to experiments/results.pkl
    python -m experiments.backbones                    # asks the small backbones: experiments/backbones.pkl
    python -m experiments.report                       # writes RESULTS.md and Visuals/results_*.png

Photographs have their own study and files (`experiments.report_photos`). Every measured number of the page
comes from these files; what others published stands in `report_text`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import TextWrapper

import numpy as np

from experiments import photo_results, plan, report_backbones, report_equal, report_photos
from experiments import report_text as text
from experiments.backbones import OUT as BACKBONES
from experiments.figures import FIGURES, GROUPS, curve_rows, difference_rows, progress
from experiments.report_tables import (
    SIZE,
    SPEED,
    Column,
    count,
    differences,
    family_rows,
    field,
    fill,
    insert,
    interval_of,
    known,
    label,
    minutes,
    on_novel,
    scores,
    section,
    share,
    table,
    with_references,
)
from experiments.results import FROZEN, UNCHANGED, ResultsError, Study, gather, load, save
from experiments.run import COMMAND, DETECTED_ON, LOOKED_AT
from vg_utils.config import DenseGrounderConfig
from vg_utils.data import DataError
from vg_utils.files import write_atomically
from vg_utils.pickles import read_pickle

ROOT = Path(__file__).parents[1]
RESULTS, NEGATIVE = ROOT / "experiments/results.pkl", ROOT / "experiments/negative_results.md"


def page(
    study: Study,
    negative: str = "",
    asked: dict | None = None,
    photographs: str = "",
    equal: Study | None = None,
) -> str:
    """The whole of RESULTS.md; a part whose group of runs is missing is left out.

    Args:
        study: the content of `results.pkl`.
        negative: text on what did not work.
        asked: what `experiments.backbones` measured.
        photographs: the section on them, which comes first.
        equal: the content of `equal.pkl`.
    """
    parts = [
        text.TITLE,
        photographs,
        made(study),
        systems(study),
        report_equal.section(equal) if equal else "",
        frozen(study),
        by_family(study),
        training_free(study),
        blind(study),
        ablation(study),
        box_losses(study),
        learning_curve(study),
        confidence(study),
        shipped(study),
        report_backbones.section(asked) if asked else "",
        searched(study),
        not_run(study),
        f"## What did not work\n\n{negative.strip()}" if negative.strip() else "",
        refcocog(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def made(study: Study) -> str:
    """How the numbers on RefScenes came about."""
    runs, rows = study.runs, study.table
    sizes = [f"{int(runs['images'].max()):,} images to train on"]
    for split in rows["split"].unique():
        largest = rows[rows["split"] == split].sort_values("n_images").iloc[-1]
        sizes.append(f"{largest['n_images']:,.0f} of {split} with {largest['n_expressions']:,.0f} phrases")
    trained = runs[runs["train_seconds"].fillna(0) > 0]
    seeds = count(trained.groupby("name").size().max(), "seed")
    devices, hours = sorted(set(runs["device"].dropna())), trained["train_seconds"].sum() / 3600
    said = (
        f"Data: {', '.join(sizes)}. Device: {', '.join(devices) or 'unknown'}. "
        f"{count(len(trained), 'training')} of {count(trained['name'].nunique(), 'set-up')}, with up to "
        f"{seeds} each, took {hours:.1f} hours together. The best epoch of each was chosen on val; test and "
        "novel were only scored."
    )
    flagship = rows[rows["name"] == study.flagship]["label"].iloc[0]
    commands, folders = "\n".join(study.commands), " ".join(c.split()[-1] for c in study.commands)
    return text.MADE.format(made=fill(said), flagship=flagship, commands=commands, folders=folders)


def systems(study: Study) -> str:
    """The main tables: scores on each split, then size and speed."""
    rows = study.rows("systems")
    if not rows:
        return ""
    tuned = any(row["trained_parameters"] > row["head_parameters"] for row in rows)
    parts = [f"## Systems, backbones {'fine-tuned' if tuned else 'frozen'}", text.SYSTEMS]
    for split, name in text.SPLITS.items():
        if scored := study.rows("systems", split=split):
            parts += [fill(f"On {name}. {_winner(scored)}"), table(scored, scores(study))]
            parts += [text.RECOLORED] if split == "novel" else []
    parts += [text.COST, table(rows, {"system": label(study)} | SIZE | SPEED)]
    parts += [fill(f"{text.MINUTES} {_overtaken(study)}".strip())]
    parts += ["![mIoU on val by minutes of training](Visuals/results_minutes.png)"]
    parts += ["![mIoU and Acc@0.5 of all systems with intervals](Visuals/results_comparison.png)"]
    return "\n\n".join(parts)


def _winner(rows: Sequence[dict]) -> str:
    first, surest = rows[0], max(rows, key=lambda row: row["acc@0.5"])
    if surest["name"] != first["name"]:
        return (
            f"By mIoU the best is {first['label']} ({first['miou']:.3f}), by Acc@0.5 {surest['label']} "
            f"({surest['acc@0.5']:.3f} against {first['acc@0.5']:.3f})."
        )
    said = [f"{row['label']} (mIoU {row['miou']:.3f}, Acc@0.5 {row['acc@0.5']:.3f})" for row in rows[:2]]
    return f"Best is {', then '.join(said)}."


def _overtaken(study: Study) -> str:
    """After how many minutes the flagship passes the best of the best other system, on val."""
    runs = study.runs[study.runs["group"] == "systems"]
    rivals = runs[runs["name"] != study.flagship].groupby("label")["val_miou"].mean()
    lines = progress(study, study.flagship)
    if rivals.empty or not lines:
        return ""
    rival, best = rivals.idxmax(), rivals.max()
    passed = [minutes[mious > best].min(initial=np.inf) for minutes, mious in lines]
    said = f"On val {rival} reaches {best:.3f} mIoU"
    if not np.isfinite(passed).all():
        return f"{said}, which not every seed of {study.flagship} passes."
    took = f"{max(passed):.1f} of its {np.mean([minutes[-1] for minutes, _ in lines]):.1f} minutes"
    return f"{said}; every seed of {study.flagship} has passed that after {took}."


def frozen(study: Study) -> str:
    """The same systems with frozen backbones."""
    tuned = {f"{row['label']}{FROZEN}": row["miou"] for row in study.rows("systems")}
    columns = insert(scores(study), "Acc@0.5", {"fine-tuned": lambda r: share(tuned.get(r["label"]))})
    columns = insert(columns, "seeds", SIZE | {"minutes": minutes})
    return section("Systems, backbones frozen", text.FROZEN, study.rows("frozen"), columns)


def by_family(study: Study) -> str:
    """Acc@0.5 of every system on every family."""
    rows, columns = family_rows(study)
    figure = "![Acc@0.5 by system and family](Visuals/results_families.png)"
    lead = text.FAMILIES.format(looked_at=LOOKED_AT)
    return section("By family of expressions", lead, rows, columns, figure)


def training_free(study: Study) -> str:
    """Proposals ranked by CLIP."""
    parts = []
    for split, name in text.SPLITS.items():
        if rows := study.rows("training-free", split=split):
            parts += [fill(f"On {name}. {_winner(rows)}"), table(rows, scores(study))]
    lead = text.TRAINING_FREE.format(detected_on=DETECTED_ON, looked_at=LOOKED_AT)
    return "\n\n".join(["## Without training on phrases", lead, *parts]) if parts else ""


def blind(study: Study) -> str:
    """What can be had without looking, or without reading."""
    lead = text.BLIND.format(looked_at=LOOKED_AT)
    return section("Blind baselines", lead, study.rows("blind"), scores(study))


def ablation(study: Study) -> str:
    """One change of the flagship each."""
    rows = with_references(study, difference_rows(study, "ablation"))
    figure = "![Paired differences of each change](Visuals/results_ablation.png)"
    columns = insert({"change": label(study)} | differences(), "seeds", on_novel(study))
    return section("Ablations", text.ABLATION, rows, columns, figure)


def box_losses(study: Study) -> str:
    """The same model with other box losses."""
    rows = with_references(study, study.rows("loss"))
    usual = f"{DenseGrounderConfig().box_loss} ({UNCHANGED})"
    rows = [row | {"label": usual} if row["label"] == UNCHANGED else row for row in rows]
    columns = {"loss": label(study), "model": lambda r: f"`{r['model']}`"} | differences()
    tight = {name: field(name.lower(), "{:.3f}") for name in ("Acc@0.75", "Acc@0.9")}
    columns = insert(columns, "difference in mIoU", tight)
    return section("Box losses", text.LOSS, rows, columns)


def learning_curve(study: Study) -> str:
    """mIoU over the number of training images."""
    every = curve_rows(study)
    at = {(row["label"], row["images"]): row for row in every}
    labels = list(dict.fromkeys(name for name, _ in at))
    rows = [{"images": n} | {name: at.get((name, n)) for name in labels} for n in sorted({n for _, n in at})]
    columns: dict[str, Column] = {"training images": field("images", "{:,.0f}")}
    columns |= {name: interval_of(name) for name in labels}
    figure = "![mIoU by number of training images](Visuals/results_learning_curve.png)"
    lead = fill(f"{text.CURVE} {_curve_times(every)}".strip())
    return section("Learning curve", lead, rows, columns, figure)


def _curve_times(rows: Sequence[dict]) -> str:
    """How long the ends trained, where they are systems of the first table."""
    minutes = {
        group: np.mean([row["train_seconds"] for row in rows if row["group"] == group] or [0]) / 60
        for group in ("curve", "systems")
    }
    if not minutes["systems"]:
        return ""
    return (
        f"Their ends are the systems of the first table, which trained for {minutes['systems']:.1f} minutes "
        f"on average, the other points for {minutes['curve']:.1f}."
    )


def confidence(study: Study) -> str:
    """Calibration, ranking and absent phrases."""
    # What is blind has a score, but learned from no absent phrase.
    groups = [group for group in GROUPS if group != "blind"]
    rows = [r for r in study.rows(*groups) if known(r.get("ece")) or known(r.get("presence_auroc"))]
    columns = {
        "system": label(study),
        "ECE": field("ece", "{:.3f}"),
        "AURC": field("aurc", "{:.3f}"),
        "wrong": lambda r: share(1 - r["acc@0.5"]),
        "absent phrases": field("n_absent", "{:,.0f}"),
        "presence AUROC": field("presence_auroc", "{:.3f}"),
        "presence ECE": field("presence_ece", "{:.3f}"),
    }
    return section("Confidence and absent phrases", text.CONFIDENCE, rows, columns)


def shipped(study: Study) -> str:
    """The checkpoints that come with the package."""
    names = [f"shipped-{name}" for name in plan.SHIPPED]  # the study had scored more than the package holds
    rows = study.rows("long") + [row for row in study.rows("shipped") if row["name"] in names]
    columns = insert(scores(study), "seeds", on_novel(study) | SIZE | {"minutes": minutes})
    return section("Shipped checkpoints", text.SHIPPED, rows, columns)


def searched(study: Study) -> str:
    """The settings that were tried before."""
    runs = study.runs[study.runs["group"] == "search"]
    runs = runs.assign(system=runs["label"].str.split(",").str[0])
    rows = runs.sort_values(["system", "val_miou"], ascending=[True, False]).to_dict("records")
    columns: dict[str, Column] = {"system and change": field("label")}
    columns |= {"val mIoU": field("val_miou", "{:.3f}"), "novel mIoU": field("search_novel_miou", "{:.3f}")}
    return section("Settings that were tried", text.SEARCH, rows, columns | {"minutes": minutes})


def not_run(study: Study) -> str:
    """What the plan has and the results have not."""
    if COMMAND not in study.commands:
        return ""
    seeds = study.runs.groupby("name").size()
    missing: dict[str, list[str]] = {}
    for run in plan.study():
        lacking = run.seeds - seeds.get(run.name, 0)
        if lacking:
            left = f" ({count(lacking, 'seed')})" if lacking < run.seeds else ""
            missing.setdefault(run.group, []).append(run.label + left)
    lines = [
        TextWrapper(width=108, break_on_hyphens=False, subsequent_indent="  ").fill(
            f"- {group}: {', '.join(dict.fromkeys(labels))}"
        )
        for group, labels in missing.items()
    ]
    return f"## Not run yet\n\n{text.NOT_RUN}\n\n" + "\n".join(lines) if lines else ""


def refcocog(study: Study) -> str:
    """What is not measured here, how to, and what others report."""
    model = next(row["model"] for row in study.table.to_dict("records") if row["name"] == study.flagship)
    names = ("system", "paper", "kind", "val", "test")
    rows = [dict(zip(names, line, strict=True)) for line in text.PUBLISHED]
    columns = {"system": lambda r: "[{system}](https://arxiv.org/abs/{paper})".format(**r)}
    columns |= {"what it is": field("kind")}
    columns |= {split: field(split, "{:.1f}") for split in ("val", "test")}
    return f"{text.REFCOCOG.format(model=model)}\n\n{table(rows, columns)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; gather, or write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gather", type=Path, nargs="+", metavar="DIR", help="directories of the study")
    parser.add_argument("--flagship", help="name of the run to compare with (with --gather)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--equal", type=Path, default=report_equal.RESULTS, help="of `experiments.run --equal`, gathered"
    )
    parser.add_argument("--backbones", type=Path, default=BACKBONES, help="of `experiments.backbones`")
    parser.add_argument("--photos", type=Path, default=photo_results.RESULTS, help="of `experiments.photos`")
    parser.add_argument("--negative", type=Path, default=NEGATIVE, help="text on what did not work")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder of RESULTS.md and Visuals/")
    options = parser.parse_args(arguments)
    try:
        if options.gather:
            save(options.results, gather(options.gather, options.flagship))
            print(f"{options.results}: {options.results.stat().st_size:,} bytes")
            return 0
        study = load(options.results)
        equal = load(options.equal) if options.equal.is_file() else None
    except (ResultsError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    negative = options.negative.read_text() if options.negative.is_file() else ""
    asked = read_pickle(options.backbones) if options.backbones.is_file() else None
    photographs = report_photos.of_files(options.photos)
    written = page(study, negative, asked, photographs, equal)
    write_atomically(options.out / "RESULTS.md", written.encode())
    for name, (draw, groups) in FIGURES.items():
        if all(study.rows(group) for group in groups):
            draw(study, options.out / "Visuals" / name)
    if equal:
        report_equal.draw(equal, options.out / "Visuals")
    print(f"{options.out / 'RESULTS.md'}: written, with its figures in {options.out / 'Visuals'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
