"""The scripts that train and score every system, at the size of a test."""

from __future__ import annotations

import os
import pickle
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from experiments import lengths, plan, run
from experiments.plan import Run, set_fields
from tests.conftest import TINY_SIZE
from vg_utils.config import Config
from vg_utils.data import load_examples
from vg_utils.pickles import write_pickle
from vg_utils.predictor import Grounder
from vg_utils.training.loaders import load_split


def test_every_run_of_the_study_has_its_own_name_and_differs_from_the_flagship_as_it_says():
    runs = plan.study()
    assert len({r.name for r in runs}) == len(runs)
    by_label = {r.label: r.config for r in runs if r.group == "ablation"}
    unchanged = by_label.pop("unchanged")
    for label, config in by_label.items():
        assert config == set_fields(unchanged, **plan.ABLATIONS[label]) != unchanged
    assert {r.name for r in runs} >= set(plan.SHIPPED.values())


def test_shuffled_phrases_are_the_same_phrases_elsewhere(tiny_scenes):
    examples = load_examples(tiny_scenes, "train", strict=True)
    moved = plan.shuffled(examples)
    before, after = ([e.text for x in some for e in x.expressions] for some in (examples, moved))
    assert before != after
    assert sorted(before) == sorted(after)
    boxes = [[e.box_xyxy for x in some for e in x.expressions] for some in (examples, moved)]
    assert boxes[0] == boxes[1]


@pytest.fixture(scope="module")
def pictures(tiny_scenes) -> run.Pictures:
    return run.Pictures(tiny_scenes, TINY_SIZE, workers=0, shuffle=True)


def test_a_run_of_the_study_trains_scores_and_ships(pictures, tmp_path):
    tiny = {
        "model__image_size": TINY_SIZE,
        "train__batch_images": 8,
        "model__pyramid__channels": 32,
        "train__epoch_images": 0,
    }
    config = plan.recipe("dense-grounder", **tiny)
    job = run.Job(Run("some", "systems", "some", config, images=12), seed=3)
    options = Namespace(out=tmp_path, minutes=1e-4)
    found = run.do(job, pictures.on("cpu"), options, learning=None)
    assert (found["seed"], found["images"], len(found["history"])) == (3, 12, 1)
    for split in ("test", "novel"):
        assert 0 <= found["results"][split]["miou"] <= 1
        assert found["results"][split]["presence_auroc"] >= 0
        expressions = [e for x in pictures.held[split, False].examples for e in x.expressions]
        assert len(found["rows"][split]) == len(expressions)
    # Made as the package has it, it answers nearly the same.
    write_pickle(tmp_path / "results" / "some-0.pkl", found)
    (tmp_path / "runs" / "some-3").rename(tmp_path / "runs" / "some-0")
    shipped = Run("shipped-some", "shipped", "scenes/some", config, of="some")
    again = run.do(run.Job(shipped, seed=0), pictures.on("cpu"), options, learning=None)
    for split, rows in again["rows"].items():
        assert (rows["iou"] - found["rows"][split]["iou"]).abs().max() < 0.05
    trained = Config.load(tmp_path / "runs" / "some-0" / "config.json")
    assert Grounder.load(tmp_path / "shipped" / "scenes" / "some").config == set_fields(
        trained, data__root=Config().data.root
    )


def test_a_training_that_goes_on_is_as_long_as_when_it_began(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "PROBED", 4)
    splits = {name: load_split(tiny_config, name) for name in ("train", "val")}
    kept = tmp_path / "lengths" / "run.json"
    short, long = (lengths.length_by_probe(tiny_config, m, splits, kept.with_stem(f"{m}")) for m in (1, 60))
    assert long["epochs"] > short["epochs"] >= 1
    first = lengths.length_by_probe(tiny_config, 1, splits, kept)
    assert lengths.length_by_probe(tiny_config, 1, {}, kept) == first  # nothing trains: there is no data


def twice(command: list[str], said: Path) -> None:
    """The study in small, and again with one run more; to be called in a process of its own."""
    usual, small = plan.basic, {"train__batch_images": 8, "train__epoch_images": 16, "model__image_size": 64}
    plan.basic = lambda model, **changes: set_fields(usual(model, **changes), **small)
    run.DRAWN_BY = "fork"  # everything is imported here
    run.SIZE, run.LOOKED_AT, run.SIMILARITY_IMAGES = 64, 3, 3
    run.RENDERED = {"train": 24, "val": 6, "test": 6, "novel": 6}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with said.open("w") as file, redirect_stdout(file):
        for only in (["constant-box", "loss-l1"], ["constant-box", "loss-l1", "oracle-crop"]):
            sys.argv = [*command, "--only", *only]
            run.main()
            print("done", flush=True)


@pytest.mark.slow
def test_the_study_does_what_is_not_done_yet_and_nothing_twice(tmp_path, forks):
    where = ["--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "study"), "--minutes", "1e-3"]
    forks.run(twice, ["study", *where, "--processors", "1"], tmp_path / "said.txt")
    first, second, rest = (tmp_path / "said.txt").read_text().split("done\n")
    assert "FAILED" not in first
    found = {p.stem: pickle.loads(p.read_bytes()) for p in (tmp_path / "study" / "results").iterdir()}
    assert set(found) == {"constant-box-0", "loss-l1-0", "oracle-crop-0"}
    assert all(job["results"].keys() == {"test", "novel"} for job in found.values())
    assert found["loss-l1-0"]["device"] == "CPU"
    assert "constant-box-0: " in first
    assert "loss-l1-0: " in first
    assert second.startswith("oracle-crop-0: ")
    assert second.count("\n") == 1
    assert rest == ""
