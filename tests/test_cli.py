"""The command line from the outside: every verb, what it leaves behind, and one clear line where it fails."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vg_utils import pipeline
from vg_utils.cli import main
from vg_utils.config import Config
from vg_utils.presets import preset
from vg_utils.training import engine

ROOT = Path(__file__).parents[1]
RESULT_KEYS = {
    "model",
    "dataset",
    "split",
    "n_images",
    "n_expressions",
    "miou",
    "miou_ci95",
    "acc@0.5",
    "acc@0.75",
    "acc@0.9",
    "semantic_similarity",
    "text_similarity",
    "category_recall",
    "seconds",
}


def call(*arguments: object) -> int:
    """The exit status of one command, in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's
        return stop.code or 0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A tiny RefScenes, made by `prepare`: 20 images of train, 4 of each other split."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    assert call("prepare", "scenes", "--root", root, "--images", 20, "--size", 64) == 0
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Flags that make a training a matter of seconds."""
    features = tmp_path_factory.mktemp("features")
    values = {"--model.image-size": 64, "--train.cache-views": 1, "--train.similarity-images": 2}
    return [str(word) for flag in values.items() for word in flag] + ["--data.features", str(features)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scenes, small) -> Path:
    """The run directory of `train --fast`."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ("--preset", "scenes", "--model", "clip-hrnet", "--data", scenes, "--out", out, "--fast")
    assert call("train", *arguments, *small) == 0
    return out


# prepare, train, evaluate, ground


def test_prepare_writes_refcocogs_layout_and_twice_is_once(scenes, capsys):
    instances = json.loads((scenes / "annotations" / "instances.json").read_text())
    assert len(instances["images"]) == 20 + 3 * 4
    assert (scenes / "annotations" / "refs(umd).p").is_file()
    pictures = sorted((scenes / "images").iterdir())
    assert len(pictures) == 32
    assert Image.open(pictures[0]).size == (64, 64)
    written = [path.stat().st_mtime_ns for path in pictures]
    assert call("prepare", "scenes", "--root", scenes, "--images", 20, "--size", 64) == 0
    assert str(scenes) in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in pictures] == written


def test_prepare_phrases_speaks_of_the_boxes_of_a_data_set(scenes, tmp_path, capsys):
    root, boxes = tmp_path / "phrases", scenes / "annotations" / "instances.json"
    captions, picture = tmp_path / "captions.json", json.loads(boxes.read_text())["images"][0]["id"]
    captions.write_text(json.dumps({"annotations": [{"id": 1, "image_id": picture, "caption": "a scene"}]}))
    where = ("--instances", boxes, "--images", scenes / "images", "--root", root)
    assert call("prepare", "phrases", *where, "--captions", captions, "--seed", 3) == 0
    printed = capsys.readouterr().out
    assert str(root) in printed
    assert "phrases by family" in printed
    made_with = json.loads((root / "phrases.json").read_text())
    assert (made_with["seed"], made_with["captions"]) == (3, True)
    assert (root / "annotations" / "refs(umd).p").is_file()


def test_train_leaves_a_run_directory(trained, scenes):
    config = Config.load(trained / "config.json")
    assert (config.preset, config.model.name, config.model.image_size) == ("scenes", "clip-hrnet", 64)
    assert config.data.root == str(scenes)
    assert config.train.lr == preset("scenes").train.lr
    history = pickle.loads((trained / "history.pkl").read_bytes())
    assert [epoch["epoch"] for epoch in history] == list(range(1, config.train.epochs + 1))
    assert history == [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert {"train_loss", "train_miou", "val_loss", "val_miou", "val_acc@0.5"} <= set(history[0])
    assert (trained / "checkpoint" / "model.safetensors").is_file()


def test_evaluate_writes_every_key_and_the_figures(trained, scenes, tmp_path, capsys):
    results, figures = tmp_path / "results.json", tmp_path / "figures"
    where = ("--data", scenes, "--split", "test", "--json", results, "--figures", figures)
    assert call("evaluate", trained, *where) == 0
    found = json.loads(results.read_text())
    assert set(found) >= RESULT_KEYS
    assert (found["model"], found["dataset"], found["split"]) == ("clip-hrnet", "RefScenes", "test")
    assert found["n_images"] == 4
    assert found["n_expressions"] > 4
    for share in ("miou", "acc@0.5", "acc@0.75", "acc@0.9", "category_recall"):
        assert 0 <= found[share] <= 1
    for cosine in ("semantic_similarity", "text_similarity"):
        assert -1 <= found[cosine] <= 1
    low, high = found["miou_ci95"]
    assert 0 <= low <= found["miou"] <= high <= 1
    names = {path.name for path in figures.iterdir()}
    assert {"predictions.jpg", "failures.jpg", "iou_histogram.png"} <= names
    assert any(name.startswith("by_") for name in names)
    for path in figures.iterdir():
        Image.open(path).verify()
    printed = capsys.readouterr().out
    assert "4 images" in printed
    assert f"{found['miou']:.3f}" in printed


def test_evaluating_twice_gives_the_same(trained, scenes, tmp_path):
    found = []
    for name in ("one.json", "two.json"):
        assert call("evaluate", trained, "--data", scenes, "--split", "val", "--json", tmp_path / name) == 0
        found.append(json.loads((tmp_path / name).read_text()) | {"seconds": 0})
    assert found[0] == found[1]


def test_ground_prints_boxes_and_draws_them(trained, scenes, tmp_path, capsys):
    picture, drawn = sorted((scenes / "images").iterdir())[-1], tmp_path / "found.png"
    phrases = ["the red cube", "The sphere on the LEFT", "the red cube"]
    where = ("--checkpoint", trained, "--out", drawn)
    assert call("ground", picture, *phrases, *where, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [set(one) for one in found] == [{"phrase", "box_xyxy", "score", "rank", "image", "origin"}] * 3
    assert {one["origin"] for one in found} == {f"{trained}: clip-hrnet, trained on {scenes}"}
    assert [one["phrase"] for one in found] == phrases
    for one in found:
        x1, y1, x2, y2 = one["box_xyxy"]
        assert 0 <= x1 <= x2 <= 64
        assert 0 <= y1 <= y2 <= 64
        assert 0 <= one["score"] <= 1
    assert found[0] == found[2]
    assert Image.open(drawn).size == Image.open(picture).size
    assert call("ground", picture, *phrases, "--checkpoint", trained) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{trained}: clip-hrnet, trained on {scenes}"
    assert [line.split(":")[0] for line in lines] == phrases
    assert call("ground", picture, "the red cube") == 0
    assert "photos/dense-grounder: dense-grounder, trained on" in capsys.readouterr().out


def test_constant_box_is_chosen_on_train_and_needs_no_checkpoint(scenes, tmp_path):
    results = tmp_path / "constant.json"
    assert call("evaluate", "constant-box", "--data", scenes, "--split", "test", "--json", results) == 0
    found = json.loads(results.read_text())
    assert set(found) >= RESULT_KEYS
    assert found["model"] == "constant-box"
    assert 0 < found["miou"] < 0.5


def test_resume_goes_on_where_the_run_stopped(trained, scenes, small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ("train", "--preset", "scenes", "--data", scenes, "--out", out, "--fast", *small)

    def history() -> list[dict]:
        return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]

    def stop_in_second_epoch(run, *rest) -> dict:
        if run.epoch == 1:
            raise KeyboardInterrupt
        return validate(run, *rest)

    validate = engine._Run.validate
    with monkeypatch.context() as patched:
        patched.setattr(engine._Run, "validate", stop_in_second_epoch)
        assert call(*arguments) == 130
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    (first,) = history()
    assert call(*arguments) == 2  # a run is there, and nobody said to go on with it
    assert call(*arguments, "--resume", "--train.lr", "7") == 2  # or not with these settings
    capsys.readouterr()
    assert call(*arguments, "--resume") == 0
    assert [epoch["epoch"] for epoch in history()] == [1, 2]
    assert history()[0] == first  # it was not done again
    ends = [load_file(run / "checkpoint" / "last.safetensors") for run in (trained, out)]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


def test_random_init_and_other_models_train(scenes, small, tmp_path):
    arguments = ("--data", scenes, "--fast", *small, "--train.epochs", "1", "--data.limit-images", "4")
    out = tmp_path / "random"
    random = ("--random-init", "--train.cached", "False")
    assert call("train", "--out", out, *arguments, *random) == 0
    config = Config.load(out / "config.json")
    assert config.model.clip.weights == config.model.hrnet.weights == "random"
    assert config.model.clip.tuning == "full"
    out = tmp_path / "text-only"
    assert call("train", "--model", "text-only", "--out", out, *arguments) == 0
    assert Config.load(out / "config.json").model.name == "text-only"


@pytest.mark.slow
def test_run_does_everything_in_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "FAST_SCENES", {"images": 15, "size": 64, "seed": 0})
    assert call("run", "--preset", "scenes", "--fast", "--out", "out", "--model.image-size", 64) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert Config.load(out / "config.json").preset == "scenes"
    assert (out / "checkpoint" / "model.safetensors").is_file()
    assert len(pickle.loads((out / "history.pkl").read_bytes())) == 2
    saved = pickle.loads((out / "results.pkl").read_bytes())
    systems = {"clip-hrnet", "text-only", "constant-box", "scenes/dense-grounder"}
    assert set(saved["results"]) == set(saved["rows"]) == systems
    for system, result in saved["results"].items():
        assert set(result) >= RESULT_KEYS
        assert result["n_expressions"] == len(saved["rows"][system]["iou"])
        assert system in printed
    assert "cat.jpg: the cat: box" in printed
    assert "cat.jpg: the dog: not found" in printed
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"predictions.jpg", "failures.jpg", "training_curves.png", "comparison.png"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"out", "data"}  # nothing lies about


# wrong usage and bad input: status 2 and one line


@pytest.fixture
def line(capsys):
    """Runs a command that has to be refused and returns its one line."""

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert call(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1, printed.err
        return printed.err

    return refused


def test_unknown_names_are_refused_with_the_nearest(line, scenes, tmp_path):
    out = ("--out", tmp_path / "run", "--data", scenes)
    assert "did you mean 'scenes'?" in line("train", "--preset", "scene", *out)
    assert "did you mean 'scenes'?" in line("run", "--preset", "scene", "--out", tmp_path / "run")
    assert "did you mean 'clip-hrnet'?" in line("train", "--model", "clip-hrnt", *out)
    assert "did you mean '--train.lr'?" in line("train", *out, "--train.lrr", "1")
    assert "many" in line("train", *out, "--train.epochs", "many")
    assert "multiple of 32" in line("train", *out, "--model.image-size", "50")
    assert "no-such-benchmark" in line("benchmark", "no-such-benchmark")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_missing_data_is_refused(line, trained, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in line("train", "--out", tmp_path / "run", "--data", nowhere)
    assert str(nowhere) in line("evaluate", trained, "--data", nowhere, "--split", "test")
    assert str(nowhere) in line("evaluate", "constant-box", "--data", nowhere, "--split", "test")


def test_missing_checkpoints_are_refused(line, scenes, tmp_path):
    picture = next((scenes / "images").iterdir())
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in line("evaluate", nowhere, "--data", scenes, "--split", "test")
    assert str(nowhere) in line("ground", picture, "a cube", "--checkpoint", nowhere)
    train = ("train", "--data", scenes, "--out", tmp_path / "run")
    assert str(nowhere) in line(*train, "--init", nowhere)


def test_damaged_checkpoints_are_refused(line, trained, scenes, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    weights = run / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(weights) in line("evaluate", run, "--data", scenes, "--split", "test")
    (run / "config.json").write_text("{")
    assert "config.json" in line("evaluate", run, "--data", scenes, "--split", "test")


def test_bad_pictures_and_phrases_are_refused(line, trained, scenes, tmp_path):
    where = ("--checkpoint", trained)
    assert "nowhere.jpg" in line("ground", tmp_path / "nowhere.jpg", "a cube", *where)
    (tmp_path / "text.jpg").write_text("not an image")
    assert "text.jpg" in line("ground", tmp_path / "text.jpg", "a cube", *where)
    assert str(tmp_path) in line("ground", tmp_path, "a cube", *where)
    assert "word" in line("ground", next((scenes / "images").iterdir()), " ", *where)


def test_unknown_splits_and_partitions_are_refused(line, trained, scenes):
    message = line("evaluate", trained, "--data", scenes, "--split", "tset")
    assert "tset" in message
    assert "test" in message.replace("tset", "")
    assert "google" in line("evaluate", trained, "--data", scenes, "--split", "test", "--partition", "google")


def test_wrong_arguments_are_refused(line, trained, scenes, tmp_path):
    assert "evaluat" in line("evaluat", trained)
    assert "--split" in line("evaluate", trained, "--data", scenes)
    assert "--ouput" in line("ground", "picture.jpg", "a cube", "--ouput", "x.png")
    assert "--root" in line("prepare", "scenes")
    assert "coco" in line("prepare", "coco", "--root", tmp_path)
    phrases = ("prepare", "phrases", "--root", tmp_path / "new")
    assert "--instances and --images" in line(*phrases)
    assert "--images missing" in line(*phrases, "--instances", "boxes.json")
    assert "boxes.json" in line(*phrases, "--instances", tmp_path / "boxes.json", "--images", tmp_path)
    assert "--from FORMAT SOURCE missing; formats are coco, yolo" in line(
        "prepare", "jsonl", "--root", tmp_path
    )
    assert "a number" in line("prepare", "scenes", "--root", tmp_path / "new", "--images", "many")
    where = ("evaluate", trained, "--data", scenes, "--split", "test")
    assert "--threshold: expected a share" in line(*where, "--threshold", "2")
    assert "review.json" in line(*where, "--reviewed", tmp_path / "review.json")
    assert "--train.lr" in line("evaluate", trained, "--data", scenes, "--split", "test", "--train.lr", "1")
    assert "images" in line("prepare", "scenes", "--root", tmp_path / "new", "--images", "0")
    assert "size" in line("prepare", "scenes", "--root", tmp_path / "new", "--size", "8")
    assert str(scenes) in line("prepare", "scenes", "--root", scenes, "--images", "21", "--size", "64")


def test_settings_beside_a_checkpoint_are_refused_and_not_offered(line, trained, scenes):
    where = ("--data", scenes, "--split", "test")
    assert "brings its own settings" in line("evaluate", trained, *where, "--train.lr", "1")
    assert "--preset refcocog" in line("evaluate", trained, *where, "--preset", "refcocog")
    assert "--preset scenes" in line("evaluate", "constant-box", *where, "--preset", "scenes")
    assert "--train.lr" in line("evaluate", "detector-clip", *where, "--train.lr", "1")
    assert "did you mean" in line("evaluate", "detector-clip", *where, "--model.detector-clip.mod", "crop")
    done = " ".join(shell("evaluate", "--help").stdout.split())
    assert "--train.lr" not in done
    assert "a checkpoint brings its own settings" in done
    assert "--train.lr" in shell("train", "--help").stdout


def test_flags_of_another_data_set_are_refused(line, tmp_path):
    assert "--images: prepare refcocog has no such flag" in line(
        "prepare", "refcocog", "--root", tmp_path, "--images", "10"
    )
    assert "--instances: prepare scenes has no such flag" in line(
        "prepare", "scenes", "--root", tmp_path, "--instances", "x"
    )
    assert "--size: prepare phrases has no such flag" in line(
        "prepare", "phrases", "--root", tmp_path, "--size", "64"
    )
    assert "--from: prepare scenes has no such flag" in line(
        "prepare", "scenes", "--root", tmp_path, "--from", "coco", "x"
    )
    assert "--source: prepare scenes has no such flag" in line(
        "prepare", "scenes", "--root", tmp_path, "--source", "x"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_refused_training_leaves_the_directory_to_the_corrected_one(line, scenes, tmp_path, small):
    out, first = tmp_path / "run", ("--data.limit-images", "4", "--train.epochs", "1", "--fast", *small)
    train = ("train", "--out", out, "--data", scenes, *first)
    for wrong in (("--train.epochs", "0"), ("--train.lr", "-1"), ("--train.batch-images", "1"),
                  ("--data.resident", "True"), ("--data.root", tmp_path / "nowhere"),
                  ("--model.hrnet.weights", "no.pt")):  # fmt: skip
        assert wrong[0][2:] in line(*train, *wrong) or str(wrong[1]) in line(*train, *wrong)
        assert not out.exists()
    assert call(*train) == 0


def test_what_is_left_out_is_said_once(tmp_path, capfd):
    """Of each split, on whatever stream, and by `evaluate` too."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    good = json.dumps({"image": "a.png", "expressions": [{"text": "it", "box_xyxy": [1, 1, 30, 30]}]})
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{good}\n{good}\n" + '{"image": "none.png"}\n')
    logging.getLogger().handlers.clear()  # pytest's would take what a person sees on stderr
    arguments = ("--model", "text-only", "--fast", "--train.epochs", "1", "--model.image-size", "64")
    assert (
        call("train", "--data", tmp_path, "--out", tmp_path / "run", *arguments, "--train.cached", "False")
        == 0
    )
    said = capfd.readouterr()
    assert (said.out + said.err).count("left out 1") == 2  # of train, and of val
    assert call("evaluate", tmp_path / "run", "--data", tmp_path, "--split", "test") == 0
    said = capfd.readouterr()
    assert (said.out + said.err).count("left out 1") == 1


def own_lines(folder: Path, *phrases: str) -> Path:
    """Own data: an image with these phrases in each split."""
    folder.mkdir()
    expressions = [{"text": text, "box_xyxy": [1, 1, 30, 30]} for text in phrases]
    for split in ("train", "val"):
        Image.new("RGB", (64, 48), "red").save(folder / f"{split}.png")
        line = {"image": f"{split}.png", "expressions": expressions}
        (folder / f"{split}.jsonl").write_text(json.dumps(line))
    return folder


def test_phrases_in_words_that_the_text_encoder_does_not_know_are_refused(line, tmp_path):
    train = ("train", "--model", "text-only", "--train.epochs", "1", "--train.cached", "False", "--fast",
             "--model.image-size", "64", "--out", tmp_path / "run", "--data")  # fmt: skip
    animals = ["the giraffe", "the zebra on the left", "a dog", "the large cat"]
    said = line(*train, own_lines(tmp_path / "zoo", *animals))
    assert "4 others" in said
    assert "giraffe" in said
    assert "--preset photos" in said
    rare = [f"the thing {a}{b}" for a in "abcde" for b in "vwxyz"] + ["the red cube on the left"] * 2000
    assert "25 others" in line(*train, own_lines(tmp_path / "rare", *rare))  # few of all, but too different
    assert not (tmp_path / "run").exists()
    many = [*animals, *["the red cube on the left"] * 200]  # a few among many do no harm
    assert call(*train, own_lines(tmp_path / "many", *many)) == 0


def test_phrases_that_are_cut_are_said(capsys, tmp_path):
    long = "the thing that is not " + "big small large tiny matte metal " * 14 + "the red cube"
    data = own_lines(tmp_path / "long", "the red cube", long, *["the cube on the left"] * 3)
    assert call("train", "--model", "text-only", "--train.epochs", "1", "--train.cached", "False", "--fast",
                "--model.image-size", "64", "--out", tmp_path / "run", "--data", data) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "1 of 5 phrases are longer than the text encoder reads" in said
    assert "first: the thing that is not big" in said


def test_a_real_failure_keeps_its_traceback(monkeypatch):
    def broken(name: str, model: str) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr("vg_utils.cli.preset", broken)
    with pytest.raises(RuntimeError, match="broken"):
        main(["train", "--out", "nowhere"])


# from a shell


def shell(*arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *options, "-m", "vg_utils", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_the_verbs_and_does_not_wait_for_torch():
    done = shell("--help", options=["-X", "importtime"])
    assert done.returncode == 0
    for verb in ("run", "prepare", "train", "evaluate", "ground", "tune", "demo", "benchmark"):
        assert f"\n    {verb}" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vg_utils.cli" in imported
    assert "torch" not in imported
    assert call("train", "--help") == 0


def test_a_shell_sees_the_status_and_no_traceback(tmp_path):
    done = shell("train", "--preset", "scene", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "vg_utils train: unknown preset 'scene', did you mean 'scenes'?\n"
    done = shell("no-such-verb")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no-such-verb" in done.stderr


OUTPUTS = {
    "a file for a folder": (["train", "--out", "{file}/run"], "expected a folder"),
    "a name too long": (["train", "--out", "{long}"], "File name too long"),
    "a folder for a file": (
        ["evaluate", "photos/dense-grounder", "--split", "test", "--json", "{folder}"],
        "expected a file",
    ),
    "figures in a file": (
        ["evaluate", "photos/dense-grounder", "--split", "test", "--figures", "{file}"],
        "expected a folder",
    ),
    "an ending that is no image's": (
        ["ground", "{image}", "the cube", "--out", "{folder}/a.xyz"],
        "a file that ends in",
    ),
    "a heatmap in a file": (
        ["ground", "{image}", "the cube", "--heatmap", "{file}/a"],
        "expected a folder",
    ),
    "a study in a file": (["tune", "--study", "s", "--out", "{file}"], "expected a folder"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_where_nothing_can_be_written_it_is_said_before_the_work(
    tiny_scenes, tmp_path, capsys, monkeypatch, case
):
    arguments, message = OUTPUTS[case]
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("a model computes"))
    (tmp_path / "file").write_bytes(b"")
    image = next((tiny_scenes / "images").iterdir())
    places = {"file": tmp_path / "file", "folder": tmp_path, "long": tmp_path / ("n" * 300), "image": image}
    arguments = [argument.format(**places) for argument in arguments]
    data = [] if arguments[0] == "ground" else ["--data", str(tiny_scenes)]
    assert call(*arguments, *data) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
