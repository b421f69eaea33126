"""The section "The small backbones" of RESULTS.md, from what `experiments.backbones` asked them."""

from __future__ import annotations

from experiments import report_text as text
from experiments.report_tables import field, interval_of, table


def section(asked: dict) -> str:
    """What the small backbones know before they ground anything."""
    parts = ["## The small backbones", text.BACKBONES.format(**asked)]
    for name, lead in (("clip", text.CLIP), ("hrnet", text.HRNET)):
        lines = [line for line in asked["answers"] if name in line["backbone"]]
        rows = {line["question"]: {"question": line["question"], "chance": line["chance"]} for line in lines}
        columns = {"question": field("question"), "chance": field("chance", "{:.3f}")}
        for line in lines:
            if line["chance"] is not None:  # the commonest answer depends a little on the side
                rows[line["question"]]["chance"] = max(line["chance"], rows[line["question"]]["chance"])
            weights = ", random weights" if line["backbone"].startswith("random") else ""
            column = f"at {line['side']}{weights}"
            rows[line["question"]] |= {column: line}
            columns[column] = interval_of(column, "score")
        lead = lead.format(parameters=asked["parameters"][name] / 1e6)
        parts += [lead, table(list(rows.values()), columns)]
    return "\n\n".join(parts)
