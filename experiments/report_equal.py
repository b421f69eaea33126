"""The section of RESULTS.md on systems that trained for equal minutes, by their own speeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments import report_text as text
from experiments.figures import training_minutes
from experiments.report_tables import family_rows, fill, insert, minutes, scores, table, times_as_often
from experiments.results import Study

RESULTS = Path(__file__).parent / "equal.pkl"
FIGURE = "results_equal_minutes.png"


def section(study: Study) -> str:
    """What the systems scored on each split, how the flagship compares, and which phrases are hard."""
    trained = study.runs["train_seconds"] / 60
    (device,) = set(study.runs["device"])
    lead = text.EQUAL.format(device=device, least=trained.min(), most=trained.max())
    made = text.EQUAL_MADE.format(commands="\n".join(study.commands))
    columns = insert(scores(study), "seeds", {"minutes": minutes})
    parts = ["## In equal minutes", fill(lead), made]
    for split, name in text.SPLITS.items():
        rows = study.rows("systems", split=split)
        parts += [fill(f"On {name}. {_compared(study, rows)}"), table(rows, columns)]
    parts += [text.EQUAL_FAMILIES, table(*family_rows(study))]
    return "\n\n".join([*parts, f"![mIoU on val by minutes of training, alone on a GPU](Visuals/{FIGURE})"])


def _compared(study: Study, rows: Sequence[dict]) -> str:
    """How the flagship compares with the best other system."""
    own = next(row for row in rows if row["name"] == study.flagship)
    best = max((row for row in rows if row is not own), key=lambda row: row["acc@0.5"])
    return (
        f"Acc@0.5 of {own['label']} is {own['acc@0.5']:.3f}, of {best['label']}, the best other system, "
        f"{best['acc@0.5']:.3f}: that errs {times_as_often(best)} times as often."
    )


def draw(study: Study, folder: Path) -> None:
    """The section's figure."""
    training_minutes(study, folder / FIGURE)
