"""The section on photographs: its numbers come from the file, and the two kinds of phrases stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import photo_results, photos, report, report_photos, results
from tests.conftest import TINY_SIZE
from tests.studies.test_report import job
from vg_utils.config import set_fields
from vg_utils.data import load_examples
from vg_utils.pickles import write_pickle
from vg_utils.presets import preset

CARD = {
    "minutes": 4.0,
    "device": "a GPU",
    "learned_from": {"pictures": 10, "captions": 20, "boxes": 30},
    "bytes": {"file": 2_000_000},
    **{
        when: {key: share for key in report_photos.QUESTIONS} | {"crops": 7, "pictures": 8, "captions": 9}
        for when, share in (("before", 0.125), ("after", 0.5), ("after_in_8_bits", 0.4875))
    },
}


def run(name: str, group: str, seed: int = 0, shift: float = 0.0, people: float = 0.0, **changes) -> dict:
    """A run with its two kinds of phrases; `people` moves the IoUs of people's."""
    made, asked = (job(name, group, seed, shift + more, gpus=1, command="do it") for more in (0, people))
    for key in ("results", "by", "rows"):
        made[key] = {"test": made[key]["test"], "people": asked[key]["test"]}
    made["results"]["test"]["presence_auroc"] = 0.9
    return made | changes


@pytest.fixture
def runs() -> list[dict]:
    found = [run("dense-grounder", "systems", seed, 0.2, -0.1) for seed in (0, 1)]
    found += [run("long", "long", 0, 0.3, -0.5, gpus=2), run("clip-rpn-tokens", "systems", 0, 0.1)]
    found += [run("no-captions", "ablation", 0, 0.2, -0.2), run("small", "ablation", 0, 0.1, 0.0)]
    blind = {"train_seconds": 0.0, "gpus": 0, "device": None}
    sizes = {"train": {"pictures": 12, "phrases": 3400, "absent": 56}}
    return [*found, run("constant-box", "blind", 0, -0.3, data=sizes, **blind)]


def test_tables_hold_what_the_file_holds(runs):
    page = report_photos.section(runs, CARD)
    of_people, of_made = (photo_results.pooled(runs, split) for split in ("people", "test"))
    people, made = page.index("### People's phrases"), page.index("### Made phrases")
    for lines, part in ((of_people, page[people:made]), (of_made, page[made:])):
        line = next(line for line in lines if line["name"] == "long")
        assert f"| long | {line['miou']:.3f} [{line['miou_low']:.3f}, {line['miou_high']:.3f}] |" in part
    opening, line = page[: page.index("## On photographs")], of_people[0]
    assert opening.count("\n| ") == 2 + sum(line["name"] in report_photos.SHORT for line in of_people)
    interval = f"[{line['acc@0.5_low']:.3f}, {line['acc@0.5_high']:.3f}]"
    scores = f"{line['miou']:.3f} | {line['acc@0.5']:.3f} | {interval}"
    cells = f"{scores} | {line['train_seconds'] / 60:.1f} on 2 GPUs"
    assert f"| {report_photos.SHORT['long']} | {cells} |" in opening
    assert "12 of train with 3,400 phrases and 56 that fit nothing" in page
    assert "(7 crops) | 0.125 | 0.500 | 0.487 |" in page or "(7 crops) | 0.125 | 0.500 | 0.488 |" in page
    assert "Not run yet" in page
    assert "nan" not in page


def test_seeds_are_joined_and_differences_are_paired(runs):
    lines = {line["name"]: line for line in photo_results.pooled(runs, "people")}
    assert lines["dense-grounder"]["seeds"] == 2
    mean = sum(run["results"]["people"]["miou"] for run in runs[:2]) / 2
    assert lines["dense-grounder"]["miou"] == pytest.approx(mean)
    assert "miou_difference" not in lines["dense-grounder"]
    assert lines["no-captions"]["miou_difference"] == pytest.approx(-0.1, abs=0.02)
    assert [line["group"] for line in lines.values()][:2] == ["long", "systems"]


def test_people_and_made_phrases_never_share_a_column(runs):
    page = report_photos.section(runs, CARD)
    header = next(line for line in page.splitlines() if line.startswith("| change |"))
    for cell in header.strip("| ").split(" | ")[1:]:
        assert cell.startswith("made: ") != cell.startswith("people's: ")


def test_the_page_says_whether_the_bar_was_reached(runs):
    assert "was **not** reached" in report_photos.section(runs).replace("\n", " ")
    runs[2]["results"]["people"] |= {"acc@0.5": 0.9, "miou": 0.9}
    assert "was reached" in report_photos.section(runs).replace("\n", " ")


def test_the_ablation_that_costs_most_is_named(runs):
    said = report_photos.section(runs).replace("\n", " ")
    assert "falls most by *no-captions*" in said


def test_results_are_added_to_the_file(tmp_path: Path, runs, capsys):
    path, folder = tmp_path / "photos.pkl", tmp_path / "runs" / "results"
    write_pickle(path, runs[:2])
    folder.mkdir(parents=True)
    for found in (runs[1] | {"label": "new"}, runs[3]):
        write_pickle(folder / f"{found['name']}-{found['seed']}.pkl", found)
    assert report_photos.main(["--gather", str(folder.parent), "--results", str(path)]) == 0
    held = photo_results.load(path)
    assert [(r["name"], r["seed"]) for r in held] == [
        ("clip-rpn-tokens", 0),
        ("dense-grounder", 0),
        ("dense-grounder", 1),
    ]
    assert held[2]["label"] == "new"
    assert report_photos.main(["--gather", str(tmp_path / "none"), "--results", str(path)]) == 2
    assert "found none" in capsys.readouterr().err


def test_without_runs_there_is_no_section(tmp_path: Path, runs):
    assert report_photos.section(photo_results.load(tmp_path / "none.pkl"), CARD) == ""
    with pytest.raises(results.ResultsError, match="expected a run 'dense-grounder'"):
        photo_results.pooled(runs[2:], "test")


def test_what_has_nothing_to_train_is_scored(tiny_scenes, monkeypatch):
    monkeypatch.setattr(photos, "people_of", lambda root: load_examples(root, "val"))
    monkeypatch.setattr(
        photos, "preset", lambda *names: set_fields(preset(*names), model__image_size=TINY_SIZE)
    )
    found = {run["name"]: run for run in photos.score_untrained(tiny_scenes, tiny_scenes)}
    assert set(found) == {"constant-box", "oracle-crop", "oracle-global-local"}
    box = found["constant-box"]
    assert set(box["results"]) == {"test", "people"}
    assert box["data"]["test"]["pictures"] == len(load_examples(tiny_scenes, "test"))
    for name in ("oracle-crop", "oracle-global-local"):
        assert set(found[name]["results"]) == {"test"}
        assert found[name]["results"]["test"]["proposal_recall@all"] == 1


@pytest.mark.skipif(not photo_results.RESULTS.is_file(), reason="experiments/photos.pkl is not there yet")
def test_photographs_come_first_on_the_page():
    page = (report.ROOT / "RESULTS.md").read_text()
    assert page.index("## On photographs") < page.index("## On RefScenes")


@pytest.mark.skipif(not photo_results.RESULTS.is_file(), reason="experiments/photos.pkl is not there yet")
def test_the_readme_has_the_table_that_the_command_prints(capsys):
    assert report_photos.main(["--short"]) == 0
    assert capsys.readouterr().out.strip() in (report.ROOT / "README.md").read_text()
