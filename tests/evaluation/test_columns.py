from vg_utils.evaluation.columns import COLUMNS, NONE, USUAL
from vg_utils.pipeline import results_table

FOUND = {"miou": 0.5, "miou_ci95": [0.4, 0.61], "acc@0.5": 0.25, "category_recall": None, "seconds": 12.0}


def test_cells_are_written_by_their_columns():
    assert COLUMNS["miou"].cell(FOUND) == "0.500"
    assert COLUMNS["miou_ci95"].cell(FOUND) == "0.400-0.610"
    assert COLUMNS["miou_ci95"].cell({"miou_ci95": [None, None]}) == NONE
    assert [COLUMNS[key].cell(FOUND) for key in ("category_recall", "acc@0.9")] == [NONE, NONE]


def test_the_terminal_s_table_has_a_header_and_a_line_a_system():
    header, line = results_table({"some": FOUND}).splitlines()
    assert header.split("  ")[0] == ""
    assert len(header) == len(line)
    assert all(column.header in header for column in USUAL)
    assert line.split() == ["some", "0.500", "0.400-0.610", "0.250", NONE, NONE, NONE, NONE, "12.000"]
