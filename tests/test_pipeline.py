"""What the main job does before it trains: whose data a folder holds decides what is written to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.data.samples import ref, sentence, small_set, write_set
from tests.data.test_reviewed import review_of
from vg_utils import pipeline
from vg_utils.config import Config, ConfigError, set_fields
from vg_utils.data import DataError, load_examples
from vg_utils.data.download import is_download
from vg_utils.presets import PRESETS, preset
from vg_utils.refscenes import scenes
from vg_utils.training import engine

FAST, FULL = {"images": 5, "size": 32, "seed": 0}, {"images": 10, "size": 32, "seed": 0, "counts": {"val": 3}}


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch, tmp_path):
    """Data sets that are drawn in no time, in folders relative to the test's own."""
    monkeypatch.setattr(pipeline, "FAST_SCENES", FAST)
    monkeypatch.setattr(pipeline, "SCENES", FULL)
    monkeypatch.chdir(tmp_path)


def config_for(name: str, root: Path | str | None = None) -> Config:
    return preset(name) if root is None else set_fields(preset(name), data__root=str(root))


def contents(root: Path) -> dict[str, bytes]:
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    return {str(path): path.read_bytes() for path in files}


def pictures(root: Path | str, split: str = "train") -> int:
    return len(load_examples(root, split))


def lines(folder: Path, *splits: str) -> Path:
    """Own data as JSON lines: an image each in the files of these splits."""
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "desk.png")
    line = {"image": "desk.png", "expressions": [{"text": "the mug", "box_xyxy": [1, 1, 30, 30]}]}
    for split in splits:
        (folder / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def own_lines(folder: Path) -> Path:
    return lines(folder, "train", "val", "test")


def own_file(folder: Path) -> Path:
    return lines(folder, "all") / "all.jsonl"


def own_refer(folder: Path) -> Path:
    return write_set(folder, *small_set())


def own_flat_refer(folder: Path) -> Path:
    """The annotations beside the images, without `annotations/`."""
    root = write_set(folder, *small_set())
    for path in (root / "annotations").iterdir():
        path.rename(root / path.name)
    (root / "annotations").rmdir()
    return root


def own_parquet(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.parquet").write_bytes(b"PAR1")
    return folder


def own_notes(folder: Path) -> Path:
    """Something else: what is no data set is not to be written to either."""
    folder.mkdir()
    (folder / "thesis.txt").write_text("my only copy")
    return folder


@pytest.mark.parametrize("make", [own_lines, own_file, own_refer, own_flat_refer, own_parquet, own_notes])
@pytest.mark.parametrize("name", ["scenes", "refcocog"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_folder_of_a_persons_own_is_never_written_to(tmp_path, name, make, fast, capsys):
    root = make(tmp_path / "own")
    before = contents(tmp_path)
    pipeline.prepare_data(config_for(name, root), fast)
    assert contents(tmp_path) == before
    assert str(root) in capsys.readouterr().out


def test_where_no_photographs_are_none_is_asked_about(tmp_path, capsys):
    pipeline.show_photographs(tmp_path / "photographs")
    assert "no photographs to ask about" in capsys.readouterr().out


def test_own_lines_that_are_not_there_are_not_drawn(tmp_path):
    pipeline.prepare_data(config_for("scenes", tmp_path / "desk.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_fetched_for_a_preset_whose_data_nobody_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("vg_utils.data.download.prepare_refcocog", lambda root: pytest.fail("a download"))
    for name in PRESETS.keys() - {"scenes", "refcocog"}:
        pipeline.prepare_data(config_for(name, tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_scenes_are_drawn_where_nothing_is(tmp_path):
    (tmp_path / "new").mkdir()
    for root in (tmp_path / "new", tmp_path / "none" / "yet"):
        pipeline.prepare_data(config_for("scenes", root))
        assert (pictures(root), pictures(root, "val")) == (10, 3)


def test_scenes_cut_short_are_completed(tmp_path):
    root = tmp_path / "scenes"
    pipeline.prepare_data(config_for("scenes", root))
    whole = contents(root)
    (root / "annotations" / "instances.json").unlink()  # written last
    next((root / "images").iterdir()).unlink()
    pipeline.prepare_data(config_for("scenes", root))
    assert contents(root) == whole


def test_scenes_prepared_with_other_numbers_are_completed_with_them(tmp_path):
    root = scenes.write_scenes(tmp_path / "scenes", 7, 32, seed=3, progress=False)
    before = contents(root)
    (root / "annotations" / "instances.json").unlink()
    pipeline.prepare_data(config_for("scenes", root))
    assert contents(root) == before


def test_a_full_run_never_trains_on_the_pictures_of_a_fast_one(tmp_path):
    root = tmp_path / "scenes"
    for _ in range(2):
        pipeline.prepare_data(config_for("scenes", root), fast=True)
        assert pictures(root) == 5
    with pytest.raises(DataError, match=r"images': 10.*found.*'images': 5.*choose another folder, or remove"):
        pipeline.prepare_data(config_for("scenes", root))
    assert pictures(root) == 5
    full = tmp_path / "full"
    pipeline.prepare_data(config_for("scenes", full))
    pipeline.prepare_data(config_for("scenes", full), fast=True)  # which takes the first few of them
    assert pictures(full) == 10


@pytest.mark.parametrize("order", [(True, False), (False, True), (True, True, False, False)])
def test_runs_in_any_order_read_their_own_data(tmp_path, monkeypatch, order):
    class Trained(Exception):
        pass

    def fit(config: Config, *_, splits: dict, **__) -> None:
        assert len(splits["train"]) == pictures(config.data.root)
        seen.append(pictures(config.data.root))
        raise Trained

    seen: list[int] = []
    monkeypatch.setattr(engine, "fit", fit)
    for fast in order:
        with pytest.raises(Trained):
            pipeline.run(config_for("scenes"), tmp_path / "runs" / str(fast), fast)
    assert seen == [5 if fast else 10 for fast in order]


def test_a_download_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Its annotations come first: that they are there does not mean that the images are."""
    calls = []
    monkeypatch.setattr("vg_utils.data.download.prepare_refcocog", calls.append)
    pipeline.prepare_data(config_for("refcocog", tmp_path / "new"))
    root = own_refer(tmp_path / "begun")
    shutil.rmtree(root / "images")
    (root / "manifest.json").write_text("{}")
    assert is_download(root)
    pipeline.prepare_data(config_for("refcocog", root))
    assert calls == [tmp_path / "new", root]


def test_a_run_on_lines_without_splits_is_refused_before_it_trains(tmp_path):
    """All three splits of it are the same lines: no number of such a run would mean anything."""
    root = own_file(tmp_path / "own")
    with pytest.raises(DataError, match=r"other images to choose on than those that are scored.*\"split\""):
        pipeline.run(config_for("scenes", root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_run_on_data_without_a_split_is_refused_before_it_trains(tmp_path, missing):
    root = lines(tmp_path / "own", *({"train", "val", "test"} - {missing}))
    with pytest.raises(DataError, match=rf"{missing}\.jsonl"):
        pipeline.run(config_for("scenes", root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_constant_box_is_never_chosen_on_what_it_is_scored_on(tmp_path):
    file = own_file(tmp_path / "one")
    for split in ("train", "val", "test"):
        with pytest.raises(ConfigError, match="constant-box: expected other images"):
            pipeline.evaluate_checkpoint("constant-box", str(file), split)
    # Where test repeats a line of train, the box is chosen on the others.
    other = {"image": "desk.png", "expressions": [{"text": "the pen", "box_xyxy": [40, 30, 60, 44]}]}
    folder = own_lines(tmp_path / "many")
    with (folder / "train.jsonl").open("a") as train:
        train.write(json.dumps(other) + "\n")
    results = pipeline.evaluate_checkpoint("constant-box", str(folder), "test")
    assert results["miou"] == 0  # on the mug it would be 1, on the median of both in between


# scores beside the usual ones


def test_a_review_gives_both_scores_in_one_table(tmp_path, capsys):
    instances, refs = small_set()
    root = write_set(tmp_path / "set", instances, refs)
    (tmp_path / "review.json").write_text(json.dumps(review_of(instances, refs, "test", {4})))
    file = tmp_path / "results.json"
    where = {"split": "test", "json_path": str(file), "reviewed": "review.json"}
    results = pipeline.evaluate_checkpoint("constant-box", str(root), **where)
    assert json.loads(file.read_text()) == results
    assert (results["n_expressions"], results["reviewed"]["n_expressions"]) == (2, 1)
    printed = capsys.readouterr().out
    assert "reviewed: 2 records; sentences flagged: 1" in printed
    names = [line[:20].strip() for line in printed.splitlines()]
    assert names.index("without the flagged") == names.index("constant-box") + 1


def test_a_review_of_something_else_is_refused_before_anything_is_written(tmp_path):
    instances, refs = small_set()
    root = write_set(tmp_path / "set", instances, refs)
    (tmp_path / "review.json").write_text(json.dumps(review_of(instances, refs, "val")))
    where = {"split": "test", "json_path": "results.json", "reviewed": "review.json"}
    with pytest.raises(DataError, match=r"review\.json: expected records of the sentences that are scored"):
        pipeline.evaluate_checkpoint("constant-box", str(root), **where)
    assert not (tmp_path / "results.json").exists()


def test_phrases_of_grefcoco(tmp_path, capsys):
    """One target, none, or several: the first are scored, of the second it is asked whether that is known."""
    instances, refs = small_set()
    refs = [dict(r, ann_id=[r["ann_id"]]) for r in refs]
    refs.append(ref(10, [80, 81], 8, "test", [sentence(10, "both cars")]))
    refs.append(ref(11, [-1], 8, "test", [sentence(11, "the dog"), sentence(12, "a red ball")]))
    root = write_set(tmp_path / "set", instances, [])
    (root / "annotations" / "refs(umd).p").unlink()
    (root / "annotations" / "grefs(unc).json").write_text(json.dumps(refs))
    for threshold, n_acc in ((0.0, 0), (1.0, 1)):
        results = pipeline.evaluate_checkpoint(
            "photos/dense-grounder", str(root), "test", threshold=threshold
        )
        assert (results["n_acc"], results["t_acc"]) == (n_acc, 1 - n_acc)
        assert (results["n_expressions"], results["n_absent"], results["n_several_targets"]) == (2, 2, 1)
        printed = capsys.readouterr().out
        assert {"N-acc", "T-acc"} <= set(printed.split())
        assert f"presence_threshold: {threshold:.3f}" in printed


def test_a_threshold_that_decides_nothing_is_refused(tmp_path, tiny_scenes):
    root = write_set(tmp_path / "set", *small_set())
    for data, threshold, message in (
        (root, 1.5, "expected a share"),
        (root, 0.5, "expected phrases that fit nothing in their image"),
        (tiny_scenes, 0.5, "constant-box gives a box for every phrase"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.evaluate_checkpoint(
                "constant-box", str(data), "test", json_path="results.json", threshold=threshold
            )
    assert not (tmp_path / "results.json").exists()
