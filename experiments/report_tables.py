"""Tables of RESULTS.md: what stands in a column, and how the columns become Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import TextWrapper

import pandas as pd

from experiments.figures import family_table
from experiments.results import Study
from vg_utils.evaluation.columns import COLUMNS, NONE

Column = Callable[[dict], str]
fill = TextWrapper(width=108, break_on_hyphens=False, break_long_words=False).fill


def family_rows(study: Study) -> tuple[list[dict], dict[str, Column]]:
    """The rows of systems, and columns of their Acc@0.5 on test by family of expressions."""
    names, counts, rows, cells = family_table(study)
    rows = [row | dict(zip(names, cell, strict=True)) for row, cell in zip(rows, cells.tolist(), strict=True)]
    columns = {f"{name} ({counts[name]:,})": field(name, "{:.2f}") for name in names}
    return rows, {"system": label(study)} | columns


def section(
    title: str, lead: str, rows: Sequence[dict], columns: Mapping[str, Column], figure: str = ""
) -> str:
    """A heading, what to read off, the table and a figure; nothing where there are no rows."""
    parts = [f"## {title}", lead, table(rows, columns), figure] if rows else []
    return "\n\n".join(part for part in parts if part)


def scores(study: Study) -> dict[str, Column]:
    """Columns of what a system scored."""
    columns = {
        "system": label(study),
        **intervals("miou", "acc@0.5"),
        **plain("acc@0.75", "acc@0.9"),
        "wrong": lambda r: share(1 - r["acc@0.5"]),
        "x": times_as_often,
        "difference": lambda r: difference(r, "acc@0.5"),
        **plain("semantic_similarity", *(f"proposal_recall@{k}" for k in (5, 20, "all"))),
    }
    return columns | {"seeds": seeds}


def with_references(study: Study, rows: Sequence[dict]) -> list[dict]:
    """The rows below those that they are compared with."""
    there, wanted = {row["name"] for row in rows}, {row["reference"] for row in rows}
    every = study.table[study.table["split"] == "test"].to_dict("records")
    return [row for row in every if row["name"] in wanted - there] + list(rows)


def times_as_often(row: dict) -> str:
    """How many times as often as the flagship, where it was asked the same phrases, a system errs."""
    wrong = 1 - row["acc@0.5"]
    least = wrong + (row["acc@0.5_difference"] if known(row.get("acc@0.5_difference")) else 0.0)
    return f"{wrong / least:.2f}" if least > 0 else NONE


def on_novel(study: Study) -> dict[str, Column]:
    """A column of runs in a table of test: Acc@0.5 on novel."""
    found = {row["name"]: row["acc@0.5"] for row in study.table.to_dict("records") if row["split"] == "novel"}
    return {"Acc@0.5, novel": lambda r: share(found.get(r["name"]))}


def differences() -> dict[str, Column]:
    """Columns of runs that are compared with another one."""
    return {
        **intervals("miou", "acc@0.5"),
        "difference in mIoU": lambda r: difference(r, "miou"),
        "difference in Acc@0.5": lambda r: difference(r, "acc@0.5"),
        "seeds": seeds,
    }


def plain(*keys: str) -> dict[str, Column]:
    """Columns of results as they are called and written everywhere."""
    return {COLUMNS[key].header: COLUMNS[key].cell for key in keys}


def intervals(*keys: str) -> dict[str, Column]:
    """The same with their intervals over images."""
    return {COLUMNS[key].header: partial(interval, name=key) for key in keys}


def label(study: Study) -> Column:
    """The name of a run; the flagship's is bold."""
    return lambda r: f"**{r['label']}**" if r["name"] == study.flagship else r["label"]


def field(name: str, form: str = "{}") -> Column:
    """What a row has under a name, in a format."""
    return lambda r: form.format(r[name]) if known(r.get(name)) else NONE


def insert(columns: dict[str, Column], place: str, more: dict[str, Column]) -> dict[str, Column]:
    """The columns with more of them before `place`."""
    names = list(columns)
    at = names.index(place)
    return {n: columns[n] for n in names[:at]} | more | {n: columns[n] for n in names[at:]}


def table(rows: Sequence[dict], columns: Mapping[str, Column]) -> str:
    """A Markdown table; a column that is empty in all rows is left out."""
    cells = {name: [column(row).replace("|", "\\|") for row in rows] for name, column in columns.items()}
    cells = {name: values for name, values in cells.items() if set(values) != {NONE}}
    lines = [
        list(cells),
        [":---" if i == 0 else "---:" for i in range(len(cells))],
        *zip(*cells.values(), strict=True),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def known(value: object) -> bool:
    return value is not None and not pd.isna(value)


def share(value: float | None) -> str:
    return f"{value:.3f}" if known(value) else NONE


def interval(row: dict, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def interval_of(column: str, name: str = "miou") -> Column:
    """A score with its interval, of the dict that a row has under a name."""
    return lambda r: interval(r[column], name) if r[column] else NONE


def difference(row: dict, name: str) -> str:
    key = f"{name}_difference"
    if not known(row.get(key)):
        return NONE
    return f"{row[key]:+.3f} [{row[f'{key}_low']:+.3f}, {row[f'{key}_high']:+.3f}]"


def seeds(row: dict) -> str:
    return f"{row['seeds']}" + (f" (±{row['seed_spread']:.3f})" if known(row["seed_spread"]) else "")


def millions(name: str) -> Column:
    return lambda r: f"{r[name] / 1e6:.2f} M" if known(r.get(name)) else NONE


def minutes(row: dict) -> str:
    return f"{row['train_seconds'] / 60:.1f}" if known(row.get("train_seconds")) else NONE


SIZE: dict[str, Column] = {
    "parameters, head": millions("head_parameters"),
    "all": millions("parameters"),
}
SPEED: dict[str, Column] = {
    "trained": millions("trained_parameters"),
    "minutes": minutes,
    "pairs/s": field("pairs_per_second", "{:,.0f}"),
}
