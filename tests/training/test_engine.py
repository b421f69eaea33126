"""Training: it learns, freezes what is frozen, resumes exactly, stops when it breaks, writes its history."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.models.maps import SMALL
from tests.tiny import TOKENIZER, changed_names, copy_of, weights_of, without_clocks
from tests.training.train_jobs import run_jobs
from vg_utils import files
from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import Config, ConfigError, set_fields
from vg_utils.data import DataError, load_examples
from vg_utils.data.batches import GroundingDataset, make_loader
from vg_utils.data.jsonl import write_jsonl
from vg_utils.data.transforms import EvalTransform, TrainTransform
from vg_utils.evaluation.runs import evaluate
from vg_utils.models import build_model
from vg_utils.models.backbones import WeightsError
from vg_utils.models.checkpoints import CheckpointError, load_best
from vg_utils.models.clip_hrnet import ClipHRNet
from vg_utils.predictor import Grounder
from vg_utils.presets import preset
from vg_utils.training import engine
from vg_utils.training.engine import TrainingError, fit
from vg_utils.training.loaders import load_split
from vg_utils.training.optim import make_optimizer, make_scheduler

RANDOM = {"model__clip__weights": "random", "model__hrnet__weights": "random"}


def state_of(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoint" / "state.pt", weights_only=True)


def tensors_in(value) -> list[torch.Tensor]:
    """All tensors of nested dicts and lists, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimizer, history and best score are the same to the bit."""
    for name in ("last", "model"):
        left, right = weights_of(a, name), weights_of(b, name)
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == []
    left, right = state_of(a), state_of(b)
    assert (left["best"], left["step"], left["epoch"]) == (right["best"], right["step"], right["epoch"])
    moments = [tensors_in(state["optimizer"]) for state in (left, right)]
    assert len(moments[0]) == len(moments[1]) > 0
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))
    histories = [pickle.loads((run / "history.pkl").read_bytes()) for run in (a, b)]
    assert without_clocks(histories[0]) == without_clocks(histories[1])


# Learning and freezing


def test_overfits_four_pictures(tiny_config):
    config = set_fields(tiny_config, model__clip_hrnet__dropout=0.0)
    torch.manual_seed(0)
    model = build_model("clip-hrnet", config.model).train()
    examples = load_split(config, "train")[:4]
    batch = next(
        iter(make_loader(GroundingDataset(examples, EvalTransform(64)), TOKENIZER, 4, shuffle=False))
    )
    optimizer = make_optimizer(model, set_fields(config.train, lr=2e-3))
    scheduler = make_scheduler(optimizer, config.train, steps=100)
    with torch.no_grad():  # frozen: once is enough
        features = model.encode_images(batch.images), model.encode_texts(batch.tokens)
    for _ in range(100):
        losses = model.losses(model(*features, batch.image_index), batch.target_boxes_cxcywh)
        optimizer.zero_grad()
        sum(weight * losses[name] for name, weight in model.loss_weights.items()).backward()
        optimizer.step()
        scheduler.step()

    def miou() -> float:
        boxes = model(*features, batch.image_index)["boxes_cxcywh"]
        return paired_iou(to_xyxy(boxes), to_xyxy(batch.target_boxes_cxcywh)).mean().item()

    assert miou() > 0.95
    # BatchNorm keeps the unbiased variance: for the vectors of four images 4/3 of what it divided by
    model.eval()
    assert miou() > 0.6


@pytest.mark.parametrize(
    ("tuning", "may_change"),
    [
        ("frozen", ()),
        (
            "last",
            (
                "clip.clip.visual.layer4",
                "clip.clip.visual.attnpool",
                "hrnet.net.stage4",
            ),
        ),
    ],
)
def test_training_changes_no_weight_or_buffer_that_is_frozen(tiny_config, tmp_path, tuning, may_change):
    config = set_fields(
        tiny_config,
        **RANDOM,
        model__clip__tuning=tuning,
        model__hrnet__tuning=tuning,
        train__backbone_lr=1e-3,
    )
    torch.manual_seed(config.train.seed)
    engine.set_seed(config.train.seed)
    before = copy_of(build_model("clip-hrnet", config.model))
    fit(set_fields(config, train__epochs=1), tmp_path / "run", progress=False)
    model = build_model("clip-hrnet", config.model)
    model.load_state_dict(weights_of(tmp_path / "run", "last"))
    changed = changed_names(before, model)
    in_backbones = {name for name in changed if name.startswith(("clip.", "hrnet."))}
    assert {name for name in in_backbones if not name.startswith(may_change)} == set()
    assert all(any(name.startswith(part) for name in in_backbones) for part in may_change)
    assert {name.split(".")[0] for name in changed - in_backbones} == {
        "project_image",
        "project_text",
        "project_map",
        "reduce",
        "box_head",
        "score_head",
    }


def test_a_frozen_backbone_stays_in_evaluation_mode(tiny_config):
    model = build_model("clip-hrnet", tiny_config.model).train()
    assert model.training
    assert model.reduce.training
    assert not any(m.training for backbone in model.backbones().values() for m in backbone.modules())
    last = set_fields(tiny_config, model__hrnet__tuning="last", model__clip__tuning="last").model
    model = build_model("clip-hrnet", last).train()
    visual = model.clip.clip.visual
    assert visual.layer4.training
    assert model.hrnet.net.stage4.training
    assert not any(m.training for part in (visual.layer3, model.hrnet.net.stage3) for m in part.modules())


def test_a_last_batch_of_one_picture_is_left_out(tiny_config, tmp_path):
    """BatchNorm cannot be trained on a single value; 10 = 3 * 3 + 1."""
    for cached in (False, True):
        config = set_fields(tiny_config, data__limit_images=10, train__cached=cached, train__epochs=1)
        history = fit(config, tmp_path / f"run{cached}", progress=False)
        assert state_of(tmp_path / f"run{cached}")["step"] == 3
        assert len(history) == 1


# History


def test_history_is_whole_and_the_same_in_both_files(tiny_config, tmp_path):
    history = fit(tiny_config, tmp_path / "run", progress=False)
    pickled = pickle.loads((tmp_path / "run" / "history.pkl").read_bytes())
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert history == pickled == [json.loads(line) for line in lines]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    keys = "epoch lr seconds pairs_per_second train_loss train_miou train_acc@0.5 train_l1 train_giou "
    keys += "train_score val_loss val_miou val_acc@0.5 val_semantic_similarity"
    assert all(epoch.keys() == set(keys.split()) for epoch in history)
    assert Config.load(tmp_path / "run" / "config.json") == tiny_config


def test_means_are_weighted_by_the_expressions_of_each_batch(tiny_config, tmp_path):
    """Nothing is learned, so the outputs can be computed again; the last of three batches is short."""
    config = set_fields(
        tiny_config, train__lr=0.0, train__weight_decay=0.0, model__clip_hrnet__dropout=0.0, train__epochs=1
    )
    (epoch,) = fit(config, tmp_path / "run", progress=False)
    model = build_model("clip-hrnet", config.model)
    load_best(tmp_path / "run", model)
    data = config.data
    transform = TrainTransform(64, flip=data.flip, jitter=data.jitter, scale=data.scale)
    dataset = GroundingDataset(load_split(config, "train"), transform, 0, data.max_expressions)
    losses, ious, sizes = [], [], []
    model.train()
    for batch in make_loader(dataset, TOKENIZER, 3, shuffle=True, seed=0):
        with torch.no_grad():
            outputs = model.predict(batch.images, batch.tokens, batch.image_index)
            named = model.losses(outputs, batch.target_boxes_cxcywh)
        losses.append(sum(weight * named[name] for name, weight in model.loss_weights.items()).item())
        ious.append(paired_iou(to_xyxy(outputs["boxes_cxcywh"]), to_xyxy(batch.target_boxes_cxcywh)))
        sizes.append(len(batch.image_index))
    weighted = sum(loss * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)
    assert epoch["train_loss"] == pytest.approx(weighted, rel=1e-5)
    assert abs(weighted - sum(losses) / len(losses)) > 1e-4  # a mean of means would have been seen
    assert epoch["train_miou"] == pytest.approx(torch.cat(ious).mean().item(), rel=1e-5)
    load_best(tmp_path / "run", model)  # BatchNorm has learned from the passes above
    rows, results, _ = evaluate(
        Grounder(model, config, "cpu"), load_split(config, "val"), "RefScenes", "val", similarity=False
    )
    assert epoch["val_miou"] == pytest.approx(results["miou"], rel=1e-6)
    assert epoch["val_acc@0.5"] == (rows["iou"] >= 0.5).mean()


def test_the_rate_in_the_history_is_the_head_s(tiny_config, tmp_path):
    config = set_fields(tiny_config, model__clip__tuning="last", train__backbone_lr=1e-7, train__epochs=1)
    optimizer_lr = fit(set_fields(config, train__warmup=3.0), tmp_path / "run", progress=False)[0]["lr"]
    assert optimizer_lr > 1e-5


# Resuming


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_interrupted_after_an_epoch_ends_as_an_uninterrupted_one(
    tiny_config, tmp_path, monkeypatch, cached
):
    config = set_fields(tiny_config, train__cached=cached, train__epochs=3)
    fit(config, tmp_path / "whole", progress=False)
    validate = engine._Run.validate

    def interrupted(run: engine._Run, *arguments):
        if run.epoch == 1:
            raise KeyboardInterrupt
        return validate(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine._Run, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config, tmp_path / "cut", progress=False)
    assert state_of(tmp_path / "cut")["epoch"] == 1
    torch.randn(1000)  # the state of the global generator must not matter
    history = fit(config, tmp_path / "cut", resume=True, progress=False)
    assert len(history) == 3
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    again = fit(config, tmp_path / "cut", resume=True, progress=False)  # nothing is left to do
    assert again == history


@dataclass
class Jobs:
    """What `jobs` ran, and where."""

    folder: Path
    configs: dict[str, Config]
    codes: dict[str, list[int]]
    errors: str


@pytest.fixture(scope="module")
def jobs(tiny_scenes, tmp_path_factory, forks) -> Jobs:
    """Trainings in other processes: two that were killed in mid-epoch, one of two processes."""
    folder = tmp_path_factory.mktemp("jobs")
    base = set_fields(_base(tiny_scenes, folder), train__epochs=2)
    short = set_fields(base, data__limit_images=14)
    configs = {
        # five batches; saved after 2, 4, 5; killed one batch later, between the two of an accumulated step
        "uncached": set_fields(short, train__accumulation=2, train__save_every=1),
        "cached": set_fields(short, train__cached=True, train__save_every=2, model__clip__text_tuning="last"),
        "together": set_fields(base, data__limit_images=11, model__hrnet__tuning="full"),
        "few": set_fields(
            base, train__epochs=1, data__root=str(own_data(folder / "own", tiny_scenes, train=4, val=1))
        ),
    }
    configs["few-cached"] = set_fields(configs["few"], train__cached=True)
    configs["few-resident"] = set_fields(configs["few"], data__resident=True)
    kinds = {name: {"processes": 2} for name in configs}
    kinds |= {"uncached": {"kill_at": [1, 3]}, "cached": {"kill_at": [1, 4]}}
    todo = []
    for name, config in configs.items():
        config.save(folder / f"{name}.json")
        todo.append({"config": str(folder / f"{name}.json"), "run_dir": str(folder / name)} | kinds[name])
    codes = forks.run(run_jobs, todo, folder / "errors.txt")
    return Jobs(folder, configs, dict(zip(configs, codes, strict=True)), (folder / "errors.txt").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "saved_at"), [("uncached", 2), ("cached", 3)])
def test_a_run_killed_in_mid_epoch_ends_as_an_uninterrupted_one(jobs, tmp_path, name, saved_at):
    config, run_dir = jobs.configs[name], jobs.folder / name
    assert jobs.codes[name] == [-signal.SIGKILL], jobs.errors
    killed = state_of(run_dir)
    assert (killed["epoch"], killed["batch"]) == (1, saved_at)
    history = fit(config, run_dir, resume=True, progress=False)
    whole = fit(config, tmp_path / "whole", progress=False)
    assert without_clocks(history) == without_clocks(whole)
    assert_same_run(tmp_path / "whole", run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["few", "few-cached", "few-resident"])
def test_of_two_processes_one_may_have_nothing_to_validate(jobs, name):
    if jobs.codes[name] != [0, 0] and "gloo" in jobs.errors.lower():
        pytest.skip(f"no communication between processes here: {jobs.errors[-300:]}")
    assert jobs.codes[name] == [0, 0], jobs.errors
    (epoch,) = pickle.loads((jobs.folder / name / "history.pkl").read_bytes())
    assert 0 <= epoch["val_miou"] <= 1


@pytest.mark.slow
def test_two_processes_score_each_validation_picture_once(jobs):
    config, run_dir = jobs.configs["together"], jobs.folder / "together"
    if jobs.codes["together"] != [0, 0] and "gloo" in jobs.errors.lower():
        pytest.skip(f"no communication between processes here: {jobs.errors[-300:]}")
    assert jobs.codes["together"] == [0, 0], jobs.errors
    history = pickle.loads((run_dir / "history.pkl").read_bytes())
    assert len(history) == 2
    assert state_of(run_dir)["step"] == 4  # 4 batches an epoch, two at a time
    model = build_model("clip-hrnet", config.model)
    load_best(run_dir, model)
    _, results, _ = evaluate(
        Grounder(model, config, "cpu"), load_split(config, "val"), "RefScenes", "val", similarity=False
    )
    assert max(epoch["val_miou"] for epoch in history) == pytest.approx(results["miou"], rel=1e-5)


def own_data(folder: Path, scenes: Path, **counts: int) -> Path:
    """JSON lines with the first so many images of RefScenes' splits."""
    for split, count in counts.items():
        write_jsonl(folder / f"{split}.jsonl", load_examples(scenes, split)[:count])
    return folder


def _base(tiny_scenes: Path, folder: Path) -> Config:
    from vg_utils.presets import preset

    return set_fields(
        preset("scenes"), data__root=str(tiny_scenes), data__features=str(folder / "features"),
        data__workers=0, model__image_size=64, train__batch_images=3, train__cached=False,
        train__cache_views=2, train__similarity_images=2,
    )  # fmt: skip


def test_the_best_score_survives_resuming(tiny_config, tmp_path):
    config = set_fields(tiny_config, train__epochs=1)
    run_dir = tmp_path / "run"
    fit(config, run_dir, progress=False)
    best = weights_of(run_dir, "model")
    torch.save(state_of(run_dir) | {"best": 0.99}, run_dir / "checkpoint" / "state.pt")
    longer = set_fields(config, train__epochs=2)
    longer.save(run_dir / "config.json")
    fit(longer, run_dir, resume=True, progress=False)
    assert state_of(run_dir)["best"] == 0.99
    assert all(torch.equal(value, best[name]) for name, value in weights_of(run_dir, "model").items())
    assert any(not torch.equal(value, best[name]) for name, value in weights_of(run_dir, "last").items())


def test_a_history_that_a_kill_left_behind_is_written_again(tiny_config, tmp_path):
    config = set_fields(tiny_config, train__epochs=1)
    history = fit(config, tmp_path / "run", progress=False)
    (tmp_path / "run" / "history.pkl").unlink()
    (tmp_path / "run" / "history.jsonl").write_text("")
    fit(config, tmp_path / "run", resume=True, progress=False)
    assert pickle.loads((tmp_path / "run" / "history.pkl").read_bytes()) == history


def test_two_runs_do_not_mix_in_one_directory(tiny_config, tmp_path):
    config = set_fields(tiny_config, train__epochs=1)
    config.save(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"there is a run here already.*--resume"):
        fit(config, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="other settings"):
        fit(set_fields(config, train__lr=0.5), tmp_path, resume=True, progress=False)
    assert Config.load(tmp_path / "config.json") == config
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train__lr": 0.5}, "train.lr is 0.002 there, 0.5 here"),
        ({"train__batch_images": 4}, "train.batch_images is 3 there, 4 here"),
        ({"data__flip": 0.1}, "data.flip is 0.5 there, 0.1 here"),
        ({"model__clip_hrnet__dropout": 0.3}, "model.clip_hrnet.dropout is 0.1 there, 0.3 here"),
        ({"train__epochs": 1}, "train.epochs is 2 there, 1 here"),
    ],
)
def test_a_run_is_not_resumed_with_settings_that_change_it(tiny_config, tmp_path, changes, named):
    tiny_config.save(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=f"the run here has other settings: {re.escape(named)}"):
        fit(set_fields(tiny_config, **changes), tmp_path, resume=True, progress=False)
    assert Config.load(tmp_path / "config.json") == tiny_config


def test_a_run_is_resumed_with_settings_that_change_nothing(tiny_config, tmp_path):
    """Other workers, another place of the same data, another part of a model that this one has not."""
    config = set_fields(tiny_config, train__cached=True, train__cache_views=1)
    fit(config, tmp_path / "whole", progress=False)
    shutil.copytree(config.data.root, tmp_path / "moved")
    other = {"root": str(tmp_path / "moved"), "features": str(tmp_path / "elsewhere"), "workers": 1}
    other = {f"data__{name}": value for name, value in other.items()}
    other |= {"data__strict": True, "train__save_every": 2, "model__transvg__layers": 3, "preset": "mine"}
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "cut", progress=False, on_epoch=interrupt)
    fit(set_fields(config, **other), tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def interrupt(epoch: dict) -> None:
    raise KeyboardInterrupt


def test_a_run_is_not_resumed_on_other_data(tiny_config, tiny_scenes, tmp_path):
    config = set_fields(tiny_config, train__epochs=1)
    fit(config, tmp_path / "run", progress=False)
    other = own_data(tmp_path / "own", tiny_scenes, train=20, val=4)
    with pytest.raises(ConfigError, match="learned from other data"):
        fit(set_fields(config, data__root=str(other)), tmp_path / "run", resume=True, progress=False)
    assert Config.load(tmp_path / "run" / "config.json") == config


def test_a_run_goes_on_for_more_epochs_and_says_so(tiny_config, tmp_path, capsys):
    """The rate follows the cosine of all epochs, also where the first few had come to its end."""
    config = set_fields(tiny_config, train__cached=True, train__cache_views=1, train__epochs=2)
    first = fit(config, tmp_path / "run", progress=False)
    longer = set_fields(config, train__epochs=4)
    capsys.readouterr()
    history = fit(longer, tmp_path / "run", resume=True, progress=False)
    said = capsys.readouterr().out
    assert "train.epochs was 2 and is 4" in said
    assert "cosine" in said
    assert history[:2] == first
    assert Config.load(tmp_path / "run" / "config.json") == longer
    whole = fit(longer, tmp_path / "whole", progress=False)
    assert first[1]["lr"] == 0
    assert [epoch["lr"] for epoch in history[2:]] == [epoch["lr"] for epoch in whole[2:]]
    capsys.readouterr()
    assert fit(longer, tmp_path / "run", resume=True, progress=False) == history
    assert "train.epochs" not in capsys.readouterr().out


def test_the_first_step_of_more_epochs_has_the_rate_of_the_new_schedule(tiny_config, tmp_path, monkeypatch):
    config = set_fields(tiny_config, train__cached=True, train__cache_views=1, train__epochs=1)
    fit(config, tmp_path / "run", progress=False)
    rates, after = [], engine._Run._after_step

    def seen(run: engine._Run, bar) -> None:
        rates.append(max(group["lr"] for group in run.optimizer.param_groups))
        after(run, bar)

    monkeypatch.setattr(engine._Run, "_after_step", seen)
    fit(set_fields(config, train__epochs=2), tmp_path / "run", resume=True, progress=False)
    resumed = rates.copy()
    rates.clear()
    fit(set_fields(config, train__epochs=2), tmp_path / "whole", progress=False)
    assert resumed == rates[3:]


# What cannot be trained is refused before anything is written


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data__root": "no/where"}, DataError, "no/where: expected"),
        ({"data__partition": "google"}, DataError, "google"),
        ({"model__clip__weights": "no/file.pt"}, WeightsError, r"no/file\.pt"),
        ({"model__name": "clip-hrnett"}, ConfigError, "did you mean 'clip-hrnet'"),
        ({"data__resident": True, "train__cached": True}, ConfigError, "expected one of them"),
        ({"train__cached": True, "model__hrnet__tuning": "full"}, ConfigError, r"train\.cached"),
        ({"train__batch_images": 1}, ConfigError, r"train\.batch_images: expected 2 or more for clip-hrnet"),
        ({"train__epoch_images": 1}, ConfigError, r"train\.epoch_images: expected 2 or more"),
        ({"data__limit_images": 1}, ConfigError, r"images of split 'train': expected 2 or more.*got 1"),
        ({"model__name": "transvg", "model__transvg__heads": 5}, ConfigError, "expected a divisor"),
    ],
)
def test_a_refused_run_leaves_its_directory_to_the_corrected_one(
    tiny_config, tmp_path, changes, error, message
):
    with pytest.raises(error, match=message):
        fit(set_fields(tiny_config, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_usable_pictures_is_an_error_that_names_it(tiny_config, tiny_scenes, tmp_path, split):
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    for example in load_examples(tmp_path / "scenes", split):
        example.image.unlink()
    config = set_fields(tiny_config, data__root=str(tmp_path / "scenes"))
    with pytest.raises(DataError, match=rf"no usable expression in split '{split}'.*image not found"):
        fit(config, tmp_path / "run", progress=False)
    given = {"train": load_split(tiny_config, "train"), "val": load_split(tiny_config, "val")} | {split: []}
    with pytest.raises(DataError, match=rf"expected images in split '{split}', found none"):
        fit(tiny_config, tmp_path / "run", progress=False, splits=given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["dense-grounder", "transvg", "text-only", "clip-rpn-concat"])
def test_models_without_batch_normalisation_train_on_one_picture_at_a_time(tiny_config, tmp_path, name):
    config = set_fields(tiny_config, **SMALL, model__name=name, train__epochs=1, train__batch_images=1)
    (epoch,) = fit(set_fields(config, data__limit_images=1), tmp_path / "run", progress=False)
    assert epoch["train_loss"] > 0


# Losses that are not finite


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tiny_config, tmp_path, monkeypatch):
    config, run_dir, losses = tiny_config, tmp_path / "run", ClipHRNet.losses
    seen: dict[str, bytes] = {}

    def broken(model: ClipHRNet, outputs, targets):
        found = losses(model, outputs, targets)
        if not (run_dir / "checkpoint").exists() or not model.training:
            return found
        seen.update({p.name: p.read_bytes() for p in (run_dir / "checkpoint").iterdir()})
        return found | {"l1": found["l1"] * float("nan")}

    with monkeypatch.context() as patch:
        patch.setattr(ClipHRNet, "losses", broken)
        with pytest.raises(TrainingError, match=r"epoch 2.*loss nan.*l1 nan.*score") as caught:
            fit(config, run_dir, progress=False)
    assert "--train.lr" in str(caught.value)
    assert {p.name: p.read_bytes() for p in (run_dir / "checkpoint").iterdir()} == seen
    fit(config, run_dir, resume=True, progress=False)
    fit(config, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", run_dir)


@pytest.mark.parametrize("batch_images", [3, 20])
def test_weights_that_the_last_step_broke_are_not_saved(tiny_config, tmp_path, batch_images):
    """With one batch an epoch all training losses are finite when the weights are of no use any more."""
    config = set_fields(tiny_config, train__lr=1e37, train__grad_clip=0.0, train__batch_images=batch_images)
    with pytest.raises(TrainingError, match="not finite"):
        fit(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoint").exists()


# A saved state that was changed


CHANGES = {
    "epoch": lambda s: s.update(epoch=-1),
    "batch": lambda s: s.update(batch="2"),
    "step": lambda s: s.update(step=True),
    "best": lambda s: s.update(best=None),
    "history": lambda s: s.update(history=[3]),
    "totals": lambda s: s["totals"].update(count=torch.tensor([1.0, 2.0])),
    "without 'totals'": lambda s: s.pop("totals"),
    "without 'optimizer'": lambda s: s.pop("optimizer"),
    "scheduler": lambda s: s.update(scheduler=[]),
    "scheduler.last_epoch": lambda s: s["scheduler"].update(last_epoch="1"),
    "scheduler.base_lrs": lambda s: s["scheduler"].update(base_lrs=[1.0]),
    "optimizer.param_groups": lambda s: s["optimizer"]["param_groups"].pop(),
    "optimizer.param_groups[0].lr": lambda s: s["optimizer"]["param_groups"][0].update(lr="fast"),
    "optimizer.state[0].exp_avg": lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(3, 3, 3)),
    "optimizer.state[1].exp_avg_sq": lambda s: s["optimizer"]["state"][1]["exp_avg_sq"].fill_(torch.nan),
    "without": lambda s: s["optimizer"].update(state={0: 3}),
}


@pytest.fixture(scope="module")
def stopped(tiny_scenes, tmp_path_factory) -> tuple[Config, Path]:
    """A run of one epoch, and the settings that go on with it."""
    folder = tmp_path_factory.mktemp("stopped")
    config = set_fields(preset("scenes"), **{"model__image_size": 64, "train__epochs": 1, "data__workers": 0})
    config = set_fields(config, data__root=str(tiny_scenes), train__similarity_images=0, train__cached=False)
    config = set_fields(config, data__limit_images=4)
    fit(config, folder / "run", progress=False)
    return set_fields(config, train__epochs=2), folder / "run"


@pytest.mark.parametrize("part", CHANGES)
def test_a_state_that_was_changed_is_refused_and_nothing_is_written(stopped, tmp_path, part):
    config, run_dir = stopped
    copied = Path(shutil.copytree(run_dir, tmp_path / "run"))
    state = state_of(copied)
    CHANGES[part](state)
    torch.save(state, copied / "checkpoint" / "state.pt")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=rf"state\.pt: .*{re.escape(part)}") as raised:
        fit(config, copied, resume=True, progress=False)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_state_with_more_in_it_than_there_is_changes_no_method(stopped, tmp_path):
    config, run_dir = stopped
    copied = Path(shutil.copytree(run_dir, tmp_path / "run"))
    state = state_of(copied)
    state["scheduler"]["step"] = state["scheduler"]["get_last_lr"] = 3
    torch.save(state, copied / "checkpoint" / "state.pt")
    assert len(fit(config, copied, resume=True, progress=False)) == 2


# One run directory, one writer


def test_a_second_writer_is_told_and_writes_nothing(stopped, tmp_path, monkeypatch):
    config, run_dir = stopped
    copied = Path(shutil.copytree(run_dir, tmp_path / "run"))
    monkeypatch.setattr(files, "DYING_SECONDS", 0)
    lock = files.FolderLock(copied)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"run: another training writes there now"):
        fit(config, copied, resume=True, progress=False)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    lock.release()
    (copied / f".history.pkl.{files._HOST}-{2**22 + 1}.part").write_bytes(b"of a killed writer")
    assert len(fit(config, copied, resume=True, progress=False)) == 2
    assert not list(copied.glob(".*.part"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_directory_that_was_deleted_meanwhile_is_an_error(stopped, tmp_path, epoch):
    config, _ = stopped
    out = tmp_path / "run"

    def delete(found: dict) -> None:
        if found["epoch"] == epoch:
            shutil.rmtree(out)

    with pytest.raises(FileNotFoundError, match="was deleted or replaced while it was written to"):
        fit(config, out, progress=False, on_epoch=delete)
    assert not out.exists()
