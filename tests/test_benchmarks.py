"""The benchmarks run, and their variants do the same work. Nothing here depends on how fast anything is."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import (
    BENCHMARKS,
    _timing,
    answering,
    caching,
    decoding,
    grounding,
    grouping,
    proposals,
    reading,
    together,
    training,
)
from vg_utils.cli import main as command_line

MODULES = {"decoding": decoding, "grouping": grouping, "caching": caching, "grounding": grounding}
MODULES |= {"proposals": proposals, "reading": reading, "answering": answering, "training": training}
MODULES |= {"together": together}


def run(name, *arguments):
    """A benchmark in its smallest setting; its figures have to be there whatever they are."""
    report = MODULES[name].main(["--tiny", *map(str, arguments)])
    for comparison in report.comparisons:
        rows = comparison.rows()
        assert len(rows) >= 2
        assert rows[0]["what"] == comparison.baseline
        assert rows[0]["ratio"] == 1
        assert all(math.isfinite(row[key]) and row[key] > 0 for row in rows for key in ("value", "ratio"))
    return report


def test_every_benchmark_is_listed():
    assert set(BENCHMARKS) == set(MODULES)


def test_decoding_reads_every_expression_each_way():
    report = run("decoding")  # the order of the sentences is compared within, and raises
    assert report.checks["images"] == 4
    assert report.checks["expressions of each variant"] > 4
    assert report.checks["mean grey levels, full to reduced decode"] < 2


def test_grouping_answers_the_same_each_way():
    report = run("grouping")
    assert [len(c.rows()) for c in report.comparisons] == [2, 2, 4]
    assert {c.work for c in report.comparisons} == {report.checks["pairs in a step of each"]}
    for comparison in report.comparisons:
        variants = report.checks[f"{comparison.title}: between the variants' boxes"]
        boxes = report.checks[f"{comparison.title}: between boxes"]
        assert variants < 1e-4
        assert boxes > 100 * variants  # they agree because they are right, not because all are alike


def test_caching_learns_the_same_each_way():
    report = run("caching")
    loss = report.checks["training loss at the end"]
    assert report.checks["largest difference of an epoch's training loss"] < 0.02 * loss


def test_the_same_proposals_are_picked_each_way():
    assert run("proposals").checks["pixels between the boxes"] < 1e-3


def test_reading_finds_every_expression_each_way():
    report = run("reading", "--against", ".")  # this checkout, as if it were another
    assert [len(c.rows()) for c in report.comparisons] == [3, 3]
    assert list(report.checks.values()) == [40, 40]


def test_two_processes_learn_as_one_does(forks):
    forks.run(train_together)


def train_together():
    together.START_METHOD = "fork"  # everything is imported here
    report = run("together", "--model", "text-only", "--images", 4)
    one, two = (report.checks[f"training loss of {name}"] for name in ("1 process", "2 processes"))
    assert two == pytest.approx(one, rel=0.1)  # not the same phrases in a batch of each


def test_grounding_answers_the_same_each_way(tmp_path):
    report = run("grounding", "--json", tmp_path / "figures.json")
    assert report.checks["pixels between the boxes of different questions"] > 1
    assert report.checks["pixels between the boxes, first to further"] < 0.01
    assert report.checks["pixels between the boxes, further to together"] < 0.01
    assert report.checks["pixels between the boxes, alone to in a batch"] < 0.05
    assert report.comparisons[1].work == 6
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["benchmark"] == "grounding"
    assert written["machine"]
    assert written["comparisons"][0]["rows"] == report.comparisons[0].rows()


@pytest.mark.slow
def test_answering_gives_the_same_boxes_each_way_and_in_another_process():
    report = run("answering", "--model", "dense-grounder", "--against", Path(__file__).parent.parent)
    assert [len(c.rows()) for c in report.comparisons] == [3, 3, 3]
    between = {name: value for name, value in report.checks.items() if " to " in name}
    assert len(between) == 2
    assert max(between.values()) < 1e-3
    assert report.checks["dense-grounder: pixels between boxes of different phrases"] > 1


def test_training_steps_are_timed_beside_another_build():
    report = run(
        "training", "--model", "clip-rpn-attention", "--frozen", "--against", Path(__file__).parent.parent
    )
    assert report.comparisons[0].work == 7  # 3.7 phrases for each of two images


def test_ratios_are_of_the_same_round():
    seconds = {"slow": [4.0, 40.0, 4.0], "fast": [1.0, 10.0, 2.0]}
    slow, fast = _timing.Comparison("a title", "slow", seconds, 8, "pairs/s").rows()
    assert (slow["value"], slow["low"], slow["high"], slow["ratio"]) == (2, 0.2, 2, 1)
    assert (fast["value"], fast["ratio"], fast["ratio_low"], fast["ratio_high"]) == (4, 4, 2, 4)
    assert _timing.Comparison("a title", "slow", seconds, 8, "ms").rows()[1]["value"] == 250


def test_different_work_is_an_error():
    with pytest.raises(RuntimeError, match="different work"):
        _timing.require_equal("sentences", [1, 2], [1, 3])


def test_command_line_takes_a_name_and_its_options(tmp_path, capsys):
    assert command_line(["benchmark", "proposals", "--tiny", "--json", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["benchmark"] == "proposals"
    capsys.readouterr()
    assert command_line(["benchmark", "gruping"]) == 2
    assert "did you mean 'grouping'" in capsys.readouterr().err
    assert command_line(["benchmark", "refscenes_statistics"]) == 2
    assert command_line(["benchmark", "--full"]) == 2
    assert "name the benchmark" in capsys.readouterr().err
