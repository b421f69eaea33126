"""Weights as they are shipped: rows of the token table, running statistics by size, whole models."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models.maps import SIZE, build_small, small_config
from vg_utils.config import HRNetConfig, set_fields
from vg_utils.models import build_model, shipped
from vg_utils.models.checkpoints import CheckpointError, load_model, save_checkpoint
from vg_utils.models.clip import ClipBackbone, tokenize
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.models.shipped import halved, load_shipped, pack, pack_tensors, unpack_tensors
from vg_utils.models.shipping import ship
from vg_utils.predictor import Grounder
from vg_utils.presets import preset

PHRASES = ["the red cube", "the small cone behind the sphere"]


@pytest.fixture
def weights_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "WEIGHTS_DIR", tmp_path)
    return tmp_path


def assert_rounded(found: torch.Tensor, was: torch.Tensor) -> None:
    """Each weight is off by half a 127th of the largest of its row at most."""
    error, largest = (found - was).abs().flatten(1), was.abs().flatten(1).amax(1, keepdim=True)
    assert (error <= largest * (0.5 / 127 + 1e-6)).all()
    assert found.flatten(1).unique().numel() > 1


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))


def statistics_of(net: nn.Module, value: float) -> dict[str, torch.Tensor]:
    return {
        name: torch.full_like(tensor, value)
        for name, tensor in net.state_dict().items()
        if name.endswith(("running_mean", "running_var"))
    }


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(64, 64), (256, 256), (32, 64), (1024, 256), (120, 64), (127, 64), (129, 256), (160, 256)],
)
def test_each_size_has_its_running_statistics_and_the_nearest_in_log_is_taken(weights_dir, size, nearest):
    torch.manual_seed(0)
    net = small_net()
    save_file(
        pack(net, statistics={s: statistics_of(net, s) for s in (256, 64)}), weights_dir / "n.safetensors"
    )
    other = load_shipped(small_net(), "n", size)
    assert other[1].running_mean.unique().tolist() == other[1].running_var.unique().tolist() == [nearest]
    for name, value in net.state_dict().items():
        found = other.state_dict()[name]
        if value.ndim > 1:
            assert_rounded(found, value)
        elif "running" not in name:  # what is no matrix, to the bit
            assert torch.equal(found, value), name
    assert {value.dtype for value in other.parameters()} == {torch.float32}


def test_without_statistics_the_modules_own_are_shipped(weights_dir):
    net = small_net()
    net[1].running_mean.fill_(3)
    save_file(pack(net), weights_dir / "n.safetensors")
    for size in (32, 512):
        assert load_shipped(small_net(), "n", size)[1].running_mean.unique().tolist() == [3]


def test_every_weight_has_to_be_there_and_to_fit(weights_dir):
    net = small_net()
    packed = pack(net, statistics={64: statistics_of(net, 1), 128: statistics_of(net, 2)})
    for missing in ("0.weight", "1.running_var@128"):
        save_file({name: v for name, v in packed.items() if name != missing}, weights_dir / "n.safetensors")
        with pytest.raises(RuntimeError, match=missing.partition("@")[0]):
            load_shipped(small_net(), "n", 128)
    with pytest.raises(FileNotFoundError, match="no weights are shipped for 'other'; shipped: n"):
        load_shipped(small_net(), "other", 128)


def test_the_shipped_files_differ_by_size():
    """What the sizes of the preset and of the large images get is not the same."""
    for name in ("scenes-hrnet", "scenes-rn"):
        sizes = {
            int(key.rpartition("@")[2])
            for key in load_file(shipped.WEIGHTS_DIR / f"{name}.safetensors")
            if "@" in key
        }
        assert {128, 224} <= sizes
    small, large = (HRNetBackbone(HRNetConfig("scenes-hrnet", "shipped"), size) for size in (128, 224))
    differing = {
        name for name, value in small.state_dict().items() if not torch.equal(value, large.state_dict()[name])
    }
    assert differing
    assert all(name.endswith(("running_mean", "running_var")) for name in differing)


@pytest.mark.parametrize("prefix", ["", "clip.clip."])
def test_of_a_token_table_the_rows_that_are_asked_for_come_back(prefix):
    generator = torch.Generator().manual_seed(0)
    own = {
        f"{prefix}token_embedding.weight": torch.randn(50, 6, generator=generator),
        "matrix": torch.randn(4, 4, generator=generator),
        "vector": torch.randn(7, generator=generator) / 3,
        "count": torch.tensor(2**40),
    }
    rows = [3, 0, 49, 3]
    packed = pack_tensors(own, rows)
    assert packed[f"{prefix}token_embedding.weight"].shape == (3, 6)
    back = unpack_tensors(packed, own)
    assert back.keys() == own.keys()
    table, was = back.pop(f"{prefix}token_embedding.weight"), own[f"{prefix}token_embedding.weight"]
    kept = sorted(set(rows))
    assert_rounded(table[kept], was[kept])
    assert not table[[i for i in range(50) if i not in kept]].any()
    assert torch.equal(back["vector"], own["vector"])
    assert torch.equal(back["count"], own["count"])
    assert_rounded(back["matrix"], own["matrix"])
    whole = unpack_tensors(pack_tensors(own, None), own)
    assert_rounded(whole[f"{prefix}token_embedding.weight"], was)
    again = unpack_tensors(pack_tensors(whole, None), own)  # rounded once, it stays as it is
    assert all(torch.equal(again[name], whole[name]) for name in whole if name != "matrix")
    assert own[f"{prefix}token_embedding.weight"].dtype == torch.float32  # what was packed is as it was


def test_small_matrices_can_stay_as_they_are():
    net = small_net()
    packed = pack(net, smallest=100)  # the first convolution has 108 numbers, the second 20
    assert packed["0.weight"].dtype == torch.int8
    assert torch.equal(packed["3.weight"], net[3].weight)
    back = unpack_tensors(packed, net.state_dict())
    assert torch.equal(back["3.weight"], net[3].weight)
    assert_rounded(back["0.weight"], net[0].weight.detach())


def test_a_change_of_low_rank_is_shipped_as_such(tmp_path):
    config = set_fields(preset("photos", "text-only"), model__clip__text_tuning="full")
    model = build_model("text-only", config.model).eval()
    torch.manual_seed(0)
    with torch.no_grad():  # as if a training had moved all matrices, in rank 2
        for name, value in model.named_parameters():
            if name.startswith("clip.text.") and value.ndim == 2:
                value += 0.02 * torch.randn(len(value), 2) @ torch.randn(2, value.shape[1]) / 5
    run_dir, directories = tmp_path / "run", {rank: tmp_path / f"rank{rank}" for rank in (0, 1, 2)}
    save_checkpoint(run_dir / "checkpoint", model, {"epoch": 1}, best=True)
    config.save(run_dir / "config.json")
    for rank, directory in directories.items():
        ship(run_dir, directory, rank=rank)
    sizes = [(d / "checkpoint/model.safetensors").stat().st_size for d in directories.values()]
    assert sizes[2] < sizes[0] / 10
    vectors = {}
    for rank, directory in directories.items():
        loaded, _ = load_model(directory)
        vectors[rank] = loaded.clip.encode_texts(loaded.tokenizer(PHRASES)).pooled
    expected = model.clip.encode_texts(model.tokenizer(PHRASES)).pooled
    errors = {rank: (vector - expected).norm().item() for rank, vector in vectors.items()}
    assert errors[2] < errors[0] + 1e-3 < errors[1]  # in 8 bits, all of it is hardly better

    set_fields(config, model__clip__weights="random").save(directories[2] / "config.json")
    with pytest.raises(CheckpointError, match="finetuned from other weights"):
        load_model(directories[2])


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_shipped_run_with_tuned_text_answers_as_the_run_does(tmp_path, tuning):
    changes = {"model__clip__text_tuning": tuning, "data__root": "none"}
    model = build_small("dense-grounder", **changes).eval()
    with torch.no_grad():  # as if it had been trained, the words too
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.startswith("clip."):
                parameter.add_(0.01)
        model.temperatures.copy_(torch.tensor([1.5, 0.7]))
    run_dir, directory = tmp_path / "run", tmp_path / "shipped"
    save_checkpoint(run_dir / "checkpoint", model, {"epoch": 1}, best=True)
    small_config("dense-grounder", **changes).save(run_dir / "config.json")
    ship(run_dir, directory, tokenize(PHRASES).unique().tolist())
    assert {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()} == {
        "config.json",
        "checkpoint/model.safetensors",
    }
    sizes = [(d / "checkpoint" / "model.safetensors").stat().st_size for d in (directory, run_dir)]
    assert sizes[0] < sizes[1] * (0.25 if tuning == "full" else 0.7)
    picture = Image.effect_noise((SIZE + 20, SIZE), 80).convert("RGB")
    answers = [Grounder.load(d, "cpu").set_image(picture).ground(PHRASES) for d in (run_dir, directory)]
    for ours, theirs in zip(*answers, strict=True):
        assert theirs.box_xyxy == pytest.approx(ours.box_xyxy, abs=0.02 * SIZE)
        assert theirs.score == pytest.approx(ours.score, abs=0.01)
        assert theirs.presence == pytest.approx(ours.presence, abs=0.01)
        assert (theirs.heatmap - ours.heatmap).abs().max() < 0.01
    loaded = Grounder.load(directory, "cpu")
    assert isinstance(loaded.model.clip, ClipBackbone)
    assert torch.equal(loaded.model.temperatures, model.temperatures)
    assert json.loads((directory / "config.json").read_text())["model"]["clip"]["text_tuning"] == tuning


def test_halving_loses_no_more_than_rounding_and_spares_what_half_precision_cannot_hold():
    torch.manual_seed(0)
    tensors = {
        "bias": torch.randn(64),
        "large": torch.full((64,), 1e6),
        "small": torch.full((64,), 1e-6),
        "few": torch.tensor([1.5, 0.7]),
        "count": torch.arange(64),
        "matrix": torch.randint(-127, 128, (8, 8), dtype=torch.int8),
    }
    found = halved(tensors)
    assert [name for name, x in found.items() if x.dtype == torch.float16] == ["bias", "small"]
    for name, value in tensors.items():
        torch.testing.assert_close(found[name].to(value.dtype), value, rtol=2**-10, atol=1e-7)
