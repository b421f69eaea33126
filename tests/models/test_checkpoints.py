"""What is written to a run directory and read from it, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.models.maps import tiny_vit
from tests.tiny import copy_of
from vg_utils.config import ClipConfig, Config, ConfigError, set_fields
from vg_utils.files import write_atomically
from vg_utils.models import build_model, fingerprints
from vg_utils.models.backbones import WeightsError
from vg_utils.models.base import GroundingModel
from vg_utils.models.checkpoints import (
    CheckpointError,
    find_checkpoint,
    fingerprint,
    load_best,
    load_state,
    load_weights,
    save_checkpoint,
    save_history,
    save_weights,
    with_absolute_paths,
)
from vg_utils.models.clip import ClipBackbone, load_clip, tokenize
from vg_utils.models.shipped import pack_tensors, unpack_tensors
from vg_utils.models.shipping import ship
from vg_utils.pickles import write_pickle
from vg_utils.predictor import Grounder

STATE = {"epoch": 3, "best": 0.5, "moments": {"m": torch.arange(4.0)}, "history": [{"loss": 0.1}]}


def model_like(config, **changes) -> GroundingModel:
    model = build_model(config.model.name, set_fields(config, **changes).model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return model.eval()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def edit(path: Path, remove: str | None = None, **tensors) -> None:
    """Write the file again with the same metadata and without or with other tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    kept = load_file(path) | tensors
    kept.pop(remove, None)
    save_file(kept, path, metadata=metadata)


@pytest.fixture
def written(tiny_config, tmp_path):
    """A file of the weights of a model with frozen shipped backbones, and the model."""
    model = model_like(tiny_config)
    save_weights(tmp_path / "model.safetensors", model)
    return tmp_path / "model.safetensors", model


def test_weights_come_back_to_the_bit(written, tiny_config):
    path, model = written
    other = build_model("clip-hrnet", tiny_config.model)
    assert not torch.equal(other.box_head[0].weight, model.box_head[0].weight)
    load_weights(path, other)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_frozen_public_backbones_are_left_out_of_the_file(written, tiny_config, tmp_path):
    path, _ = written
    assert not any(name.startswith(("clip.", "hrnet.")) for name in load_file(path))
    trained = model_like(tiny_config, model__hrnet__tuning="last", model__clip__weights="random")
    save_weights(tmp_path / "trained.safetensors", trained)
    left_out = set(trained.state_dict()) - set(load_file(tmp_path / "trained.safetensors"))
    frozen = {name for name, p in trained.hrnet.named_parameters() if not p.requires_grad}
    assert frozen  # the other cannot be had again
    assert left_out & dict(trained.named_parameters()).keys() == {f"hrnet.{name}" for name in frozen}
    assert all(name.startswith("hrnet.") for name in left_out)
    load_weights(tmp_path / "trained.safetensors", trained)
    assert path.stat().st_size < (tmp_path / "trained.safetensors").stat().st_size


def test_another_backbone_is_refused(written, tiny_config):
    path, _ = written
    other = build_model("clip-hrnet", tiny_config.model)
    with torch.no_grad():
        other.hrnet.net.conv1.weight[0, 0, 0, 0] += 0.5
    with pytest.raises(CheckpointError, match=r"model\.safetensors: trained on another hrnet"):
        load_weights(path, other)


def test_weights_that_are_missing_unknown_or_misshaped_are_refused(written, tiny_config):
    path, _ = written
    whole = path.read_bytes()
    model = build_model("clip-hrnet", tiny_config.model)
    before = copy_of(model)

    edit(path, remove="box_head.3.bias")
    with pytest.raises(CheckpointError, match=r"1 missing \['box_head\.3\.bias'\], 0 unknown"):
        load_weights(path, model)
    path.write_bytes(whole)
    edit(path, extra=torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"0 missing \[\], 1 unknown \['extra'\]"):
        load_weights(path, model)
    path.write_bytes(whole)
    edit(path, **{"box_head.3.bias": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"box_head\.3\.bias: expected \(4,\), got \(5,\)"):
        load_weights(path, model)
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        load_weights(path, model)
    path.unlink()
    with pytest.raises(CheckpointError, match="found no such file"):
        load_weights(path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_another_model_are_refused(written, tiny_config):
    path, _ = written
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_weights(path, build_model("text-only", tiny_config.model))


def test_a_fingerprint_is_of_what_is_frozen(tiny_config):
    model = build_model("clip-hrnet", set_fields(tiny_config, model__clip__tuning="last").model)
    first = fingerprint(model.clip)
    with torch.no_grad():
        model.clip.clip.visual.attnpool.q_proj.weight += 1  # learns
    assert fingerprint(model.clip) == first
    with torch.no_grad():
        model.clip.clip.visual.layer1[0].conv1.weight += 1  # does not
    assert fingerprint(model.clip) != first


def test_interpolated_positions_may_differ_in_their_last_bits(tiny_config, tmp_path, monkeypatch):
    """As they do from one version of torch to the next; the file is of the same CLIP for all that."""
    model, path = model_like(tiny_config), tmp_path / "model.safetensors"
    save_weights(path, model)
    with torch.no_grad():
        model.clip.clip.visual.attnpool.positional_embedding *= 1 + 1e-3
        load_weights(path, model)
        model.clip.clip.positional_embedding *= 1 + 1e-3  # of the words: these are as they were loaded
    with pytest.raises(CheckpointError, match="trained on another clip"):
        load_weights(path, model)
    vit = ClipBackbone(ClipConfig(tiny_vit(monkeypatch), "random"), 64)
    seen = [fingerprint(vit)]
    for positions in (vit.clip.visual.positional_embedding, vit.clip.positional_embedding):
        with torch.no_grad():
            positions += 1e-3
        seen.append(fingerprint(vit))
    assert seen[0] == seen[1] != seen[2]


def test_what_is_frozen_is_hashed_once_for_all_saves(tiny_config, tmp_path, monkeypatch):
    hashed, sha256 = [], fingerprints._sha256
    monkeypatch.setattr(fingerprints, "_sha256", lambda tensors: hashed.append(1) or sha256(tensors))
    model = model_like(tiny_config).train()
    average = copy.deepcopy(model)
    for epoch in range(3):
        model.predict(torch.rand(2, 3, 64, 64), tokenize(["a cube", "a ball"]), torch.arange(2))
        save_checkpoint(tmp_path / "checkpoint", model, {"epoch": epoch}, True, average)
    assert len(hashed) == 2  # CLIP and HRNet
    for name in ("last", "average"):
        load_weights(tmp_path / "checkpoint" / f"{name}.safetensors", model_like(tiny_config))


def test_a_fingerprint_is_never_stale(tiny_config):
    net = model_like(tiny_config).hrnet.net
    zeros = {"conv1.weight": torch.zeros_like(net.conv1.weight)}
    seen = [fingerprint(net)]
    for change in (
        lambda: net.conv1.weight.add_(0.5),
        lambda: net.load_state_dict(zeros, strict=False),
        lambda: setattr(net.conv1, "weight", torch.nn.Parameter(torch.ones(net.conv1.weight.shape), False)),
        lambda: net.bn1.running_mean.add_(1),
        lambda: net.bn1.requires_grad_(True),
    ):
        with torch.no_grad():
            change()
        seen.append(fingerprint(net))
        assert fingerprint(copy.deepcopy(net)) == seen[-1]
    assert len(set(seen)) == len(seen)
    with torch.inference_mode():  # where torch counts no writes
        net = model_like(tiny_config).hrnet.net
        first = fingerprint(net)
        net.conv1.weight += 0.5
        assert fingerprint(net) != first


def test_a_checkpoint_comes_back(tiny_config, tmp_path):
    model = model_like(tiny_config)
    directory = tmp_path / "run" / "checkpoint"
    assert load_state(directory, model) is None
    save_checkpoint(directory, model, STATE, best=True)
    best = copy_of(model)
    with torch.no_grad():
        model.box_head[0].weight += 1
    save_checkpoint(directory, model, STATE | {"epoch": 4}, best=False)
    assert files_in(tmp_path / "run") == {
        "checkpoint",
        "checkpoint/model.safetensors",
        "checkpoint/last.safetensors",
        "checkpoint/state.pt",
    }
    other = build_model("clip-hrnet", tiny_config.model)
    state = load_state(directory, other)
    assert torch.equal(other.box_head[0].weight, model.box_head[0].weight)
    assert (state["epoch"], state["best"], state["history"]) == (4, 0.5, [{"loss": 0.1}])
    assert torch.equal(state["moments"]["m"], torch.arange(4.0))
    load_best(tmp_path / "run", other)
    assert torch.equal(other.box_head[0].weight, best["box_head.0.weight"])


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A run directory with one save."""
    run_dir, model = tmp_path / "run", model_like(tiny_config)
    save_checkpoint(run_dir / "checkpoint", model, STATE, best=True)
    tiny_config.save(run_dir / "config.json")
    return run_dir, model


@pytest.mark.parametrize("killed", ["filling", "between the renames", "removing the old one"])
def test_a_kill_at_any_moment_of_a_save_loses_nothing(saved, tiny_config, killed):
    run_dir, model = saved
    current, fresh, old = run_dir / "checkpoint", run_dir / ".checkpoint.new", run_dir / ".checkpoint.old"
    if killed == "filling":
        fresh.mkdir()
        (fresh / "last.safetensors").write_bytes(b"half of")
    elif killed == "between the renames":
        shutil.copytree(current, fresh)
        current.rename(old)
    else:
        old.mkdir()
        (old / "state.pt").write_bytes(b"rest of")
    other = build_model("clip-hrnet", tiny_config.model)
    assert load_state(current, other)["epoch"] == 3
    assert torch.equal(other.box_head[0].weight, model.box_head[0].weight)
    assert find_checkpoint(run_dir) == run_dir
    grounder = Grounder.load(run_dir, "cpu")
    assert torch.equal(grounder.model.box_head[0].weight, model.box_head[0].weight)
    with torch.no_grad():
        other.box_head[0].weight += 1
    save_checkpoint(current, other, STATE | {"epoch": 4}, best=False)
    assert {path.name for path in run_dir.iterdir()} == {"checkpoint", "config.json"}
    assert load_state(current, other)["epoch"] == 4
    load_best(run_dir, other)
    assert torch.equal(other.box_head[0].weight, model.box_head[0].weight)


def test_a_save_that_fails_leaves_the_one_before(saved, tiny_config):
    run_dir, model = saved
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(run_dir / "checkpoint", model, {"cannot be pickled": lambda: 0}, best=True)
    assert load_state(run_dir / "checkpoint", build_model("clip-hrnet", tiny_config.model))["epoch"] == 3


def test_a_damaged_state_is_a_clear_error(saved):
    run_dir, model = saved
    state = run_dir / "checkpoint" / "state.pt"
    whole = state.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a state"):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.pt: expected a training state"):
            load_state(run_dir / "checkpoint", model)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: expected a run directory.*shipped"):
        find_checkpoint("nowhere")
    with pytest.raises(CheckpointError, match="expected a run directory"):
        find_checkpoint(tmp_path)


def test_a_writer_that_fails_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "made" / "results.pkl"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == {"made", "made/results.pkl"}
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        write_pickle(path, lambda: 0)
    assert files_in(tmp_path) == {"made", "made/results.pkl"}


def test_history_as_pickle_and_as_lines(tmp_path):
    history = [{"epoch": 1, "val_miou": 0.25}, {"epoch": 2, "val_miou": None}]
    save_history(tmp_path, history)
    assert pickle.loads((tmp_path / "history.pkl").read_bytes()) == history
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == history
    assert files_in(tmp_path) == {"history.pkl", "history.jsonl"}


# A checkpoint of a stranger


def changed_config(run_dir: Path, **values) -> None:
    """Other values of a part of the run's model, by hand."""
    path = run_dir / "config.json"
    settings = json.loads(path.read_text())
    for name, value in values.items():
        part, _, field = name.partition("__")
        settings["model"][part][field] = value
    path.write_text(json.dumps(settings))


@pytest.fixture
def built_on_files(tiny_config, tmp_path):
    """A run whose CLIP came from a file beside the run, and is frozen; and that file."""
    file, run_dir = tmp_path / "files" / "clip.pt", tmp_path / "run"
    model = model_like(tiny_config)
    file.parent.mkdir()
    torch.save(load_clip(tiny_config.model.clip, tiny_config.model.image_size).state_dict(), file)
    save_checkpoint(run_dir / "checkpoint", model, STATE, best=True)
    set_fields(tiny_config, model__clip__weights=str(file)).save(run_dir / "config.json")
    return run_dir, file


def test_weight_files_are_found_from_anywhere_and_with_the_run(built_on_files, tmp_path, monkeypatch):
    run_dir, file = built_on_files
    monkeypatch.chdir(tmp_path / "files")
    named = with_absolute_paths(set_fields(Config(), model__clip__weights="clip.pt"))
    assert named.model.clip.weights == str(file)  # as a training writes it down
    assert with_absolute_paths(Config()) == Config()
    monkeypatch.chdir("/")
    assert Grounder.load(run_dir).config.model.clip.weights == str(file)
    (run_dir / "weights").mkdir()
    file.rename(run_dir / "weights" / "clip.pt")
    changed_config(run_dir, clip__weights="weights/clip.pt")
    moved = run_dir.rename(tmp_path / "moved")
    assert Grounder.load(moved).config.model.clip.weights == str(moved / "weights" / "clip.pt")


def test_a_weight_file_elsewhere_serves_only_if_it_is_what_the_run_was_trained_with(built_on_files, tmp_path):
    run_dir, file = built_on_files
    state = torch.load(file, weights_only=True)
    other = tmp_path / "other.pt"
    torch.save(state | {"visual.conv1.weight": state["visual.conv1.weight"] + 1}, other)
    changed_config(run_dir, clip__weights=str(other))
    with pytest.raises(CheckpointError, match="trained on another clip"):
        Grounder.load(run_dir)
    (run_dir / "link.pt").symlink_to(other)
    for leaving in ("../other.pt", "link.pt", "checkpoint/../../files/clip.pt"):
        changed_config(run_dir, clip__weights=leaving)
        with pytest.raises(ConfigError, match=r"config\.json: model\.clip\.weights: .*which leaves it"):
            Grounder.load(run_dir)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip_hrnet__hidden": "512"}, r"model\.clip_hrnet\.hidden: expected a whole number, got '512'"),
        ({"clip__weights": 3}, r"model\.clip\.weights: expected a text, got 3"),
        ({"clip_hrnet__hidden": 24}, r"expected \(24,\), got \(256,\)"),
        ({"clip__weights": "a" * 5000}, "could not be loaded"),
        ({"clip__weights": "/dev/zero"}, "no such file"),
        ({"clip__name": "hf-hub:some/model"}, "open_clip has no model"),
    ],
)
def test_settings_that_were_changed_are_an_error_of_one_line(saved, values, message):
    run_dir, _ = saved
    changed_config(run_dir, **values)
    with pytest.raises((ConfigError, CheckpointError, WeightsError), match=message) as raised:
        Grounder.load(run_dir)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(saved, bad):
    run_dir, _ = saved
    path = run_dir / "checkpoint" / "model.safetensors"
    edit(path, **{"box_head.3.bias": torch.full((4,), bad)})
    with pytest.raises(CheckpointError, match=r"box_head\.3\.bias: expected finite weights"):
        Grounder.load(run_dir)


def test_weights_that_are_finite_and_overflow_give_no_answer(saved):
    run_dir, _ = saved
    path = run_dir / "checkpoint" / "model.safetensors"
    edit(path, **{"box_head.0.weight": torch.full_like(load_file(path)["box_head.0.weight"], 3e38)})
    grounder = Grounder.load(run_dir).set_image(Image.effect_noise((40, 30), 60).convert("RGB"))
    with pytest.raises(CheckpointError, match="expected a finite answer"):
        grounder.ground(["the cube"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("box_head.0.weight.int8_scale", lambda t: t[:-1]),
        ("box_head.0.weight.int8_scale", lambda t: t * torch.nan),
        ("box_head.0.weight.int8_scale", lambda t: t.float().fill_(1e38)),
        ("box_head.0.weight.int8_scale", lambda t: t.to(torch.int32)),
        ("box_head.0.weight", lambda t: t[:, :-1]),
    ],
)
def test_packed_weights_are_looked_through(saved, tmp_path, name, change):
    run_dir, _ = saved
    ship(run_dir, tmp_path / "shipped")
    path = tmp_path / "shipped" / "checkpoint" / "model.safetensors"
    Grounder.load(tmp_path / "shipped")
    edit(path, **{name: change(load_file(path)[name]).contiguous()})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: box_head\.0\.weight|in 8 bits"):
        Grounder.load(tmp_path / "shipped")


def test_rows_of_a_token_table_have_to_be_of_it():
    own = {"token_embedding.weight": torch.zeros(9, 4)}
    packed = pack_tensors({"token_embedding.weight": torch.rand(9, 4)}, tokens=[1, 5])
    assert unpack_tensors(packed, own)["token_embedding.weight"][[0, 2, 8]].eq(0).all()
    for rows in ([1, 9], [-1, 5], [5, 1], [1, 1], [1], [1.0, 5.0], [[1], [5]]):
        with pytest.raises(ValueError, match=r"token_embedding\.rows: expected 2 rows of 9"):
            unpack_tensors(packed | {"token_embedding.rows": torch.tensor(rows)}, own)
    with pytest.raises(ValueError, match="none that fit"):
        unpack_tensors(packed, {})


@pytest.mark.parametrize("prints", ["[]", "{", '{"clip": 3}', '{"other": "a"}', "[" * 100_000])
def test_fingerprints_are_texts_by_backbone(saved, prints):
    run_dir, _ = saved
    path = run_dir / "checkpoint" / "model.safetensors"
    save_file(load_file(path), path, metadata={"fingerprints": prints})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ") as raised:
        Grounder.load(run_dir)
    assert len(str(raised.value)) < 500
