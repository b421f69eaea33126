"""The scripts that train and score every system, at the size of a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments import plan, run, small
from experiments.plan import Run, set_fields
from tests.conftest import TINY_SIZE
from vg_utils.checkpoints import ship
from vg_utils.data import load_examples
from vg_utils.predictor import Grounder


def test_every_run_of_the_study_has_its_own_name_and_differs_from_the_flagship_as_it_says():
    runs = plan.study()
    assert len({r.name for r in runs}) == len(runs)
    by_label = {r.label: r.config for r in runs if r.group == "ablation"}
    unchanged = by_label.pop("unchanged")
    for label, config in by_label.items():
        assert config == set_fields(unchanged, **plan.ABLATIONS[label]) != unchanged
    assert {r.name for r in runs if r.group == "systems"} >= set(plan.SHIPPED)


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
    tiny = {"model__image_size": TINY_SIZE, "train__batch_images": 8, "model__pyramid__channels": 32}
    config = plan.recipe("dense-grounder", **tiny)
    job = run.Job(Run("some", "systems", "some", config, images=12), seed=3)
    found = run.do(job, pictures.on("cpu"), tmp_path, seconds=0.01)
    assert (found["seed"], found["images"], len(found["history"])) == (3, 12, 1)
    for split in ("test", "novel"):
        assert 0 <= found["results"][split]["miou"] <= 1
        assert found["results"][split]["presence_auroc"] >= 0
        expressions = [e for x in pictures.held[split, False].examples for e in x.expressions]
        assert len(found["rows"][split]) == len(expressions)
    ship(tmp_path / "runs" / "some-3", tmp_path / "shipped", tokens=range(49408))
    example = pictures.held["test", False].examples[0]
    answers = [
        Grounder.load(folder).set_image(example.image).ground(["the red cube"])[0].box_xyxy
        for folder in (tmp_path / "runs" / "some-3", tmp_path / "shipped")
    ]
    assert answers[0] == pytest.approx(answers[1], abs=0.5)  # half precision, pixels


def test_the_small_study_trains_and_scores_as_the_command_line_does(tiny_config, tmp_path):
    for planned, seeds, do in small.plan():
        if planned.name not in ("clip-hrnet", "detector-clip-crop", "constant-box"):
            continue
        config = replace(tiny_config, model=replace(tiny_config.model, name=planned.config.model.name))
        config = set_fields(config, train__epochs=1)
        found = do(replace(planned, config=config), 0, tmp_path)
        assert seeds == 1
        assert found["results"].keys() == found["rows"].keys() == {"test", "novel"}
        assert all(0 <= result["miou"] <= 1 for result in found["results"].values())
