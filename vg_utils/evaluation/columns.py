"""How a result is called and written in a table, be it in a terminal or on a page; its key is JSON's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

NONE = "-"  # where there is no such result


class Column(NamedTuple):
    """A column of results.

    Attributes:
        key: of the result, as `evaluate --json` writes it.
        header: what stands above it.
        form: how a number, or the two of an interval, is written.
    """

    key: str
    header: str
    form: str = "{:.3f}"

    def cell(self, results: Mapping[str, Any]) -> str:
        """What stands in the row of these results."""
        value = results.get(self.key)
        values = value if isinstance(value, list | tuple) else [value]
        return NONE if pd.isna(values).any() else self.form.format(*values)


COLUMNS = {
    column.key: column
    for column in (
        Column("miou", "mIoU"),
        Column("miou_ci95", "95% interval", "{:.3f}-{:.3f}"),
        Column("acc@0.5", "Acc@0.5"),
        Column("acc@0.75", "Acc@0.75"),
        Column("acc@0.9", "Acc@0.9"),
        Column("semantic_similarity", "semantic"),
        Column("category_recall", "category"),
        Column("seconds", "seconds"),
        Column("proposal_recall@1", "R@1"),
        Column("proposal_recall@5", "R@5"),
        Column("proposal_recall@20", "R@20"),
        Column("proposal_recall@all", "R@all"),
        Column("n_acc", "N-acc"),
        Column("t_acc", "T-acc"),
    )
}
OF_TARGETS = [COLUMNS[key] for key in ("n_acc", "t_acc")]  # where phrases have no target, as in gRefCOCO
USUAL = [  # all systems have them
    column
    for column in COLUMNS.values()
    if not column.key.startswith("proposal") and column not in OF_TARGETS
]
