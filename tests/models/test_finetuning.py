"""How much of an encoder trains: exactly what the tuning says, and LoRA that starts as the frozen encoder."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.models.maps import SIZE, TINY_VIT, build_small, small_config, tiny_vit
from tests.tiny import changed_names, copy_of
from vg_utils.config import ClipConfig, ConfigError, HRNetConfig
from vg_utils.models import build_model
from vg_utils.models.checkpoints import load_weights, save_weights
from vg_utils.models.clip import ClipBackbone, tokenize
from vg_utils.models.finetuning import NORMS, set_tuning
from vg_utils.models.hrnet import HRNetBackbone
from vg_utils.training.averages import MovingAverage

TUNINGS = ("frozen", "norms", "last", "lora", "full")
PHRASES = ["the red cube", "the small metal cone behind the large green sphere on the left"]
VISUAL, LOGIT = "clip.visual.", "clip.logit_scale"
every_tuning = pytest.mark.parametrize("tuning", TUNINGS)


def clip_backbone(image: str = "frozen", text: str = "frozen", **settings) -> ClipBackbone:
    torch.manual_seed(0)
    settings = {"name": "scenes-rn", "weights": "shipped"} | settings
    return ClipBackbone(ClipConfig(tuning=image, text_tuning=text, **settings), SIZE)


def hrnet_backbone(tuning: str = "frozen") -> HRNetBackbone:
    torch.manual_seed(0)
    return HRNetBackbone(HRNetConfig("scenes-hrnet", "shipped", tuning), SIZE)


def pictures(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def all_of(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def norms_and_positions(module: nn.Module) -> set[str]:
    """By the classes of the modules and the names of the parameters, of an untouched module."""
    found = {name for name in all_of(module) if name.endswith("positional_embedding")}
    for path, part in module.named_modules():
        if isinstance(part, NORMS):
            found |= {f"{path}.{name}" for name, _ in part.named_parameters()}
    return found


def expected_names(plain: nn.Module, tuned: nn.Module, tuning: str, last: tuple[str, ...]) -> set[str]:
    """Of the parameters of one tower: `plain` and `tuned` are the backbone without and with the tuning."""
    if tuning == "lora":
        return {name for name in all_of(tuned) if ".lora_" in name}
    if tuning == "norms":
        return norms_and_positions(plain)
    parts = {"frozen": (), "last": last, "full": ("",)}[tuning]
    return {name for name in all_of(plain) if name.startswith(parts)} if parts else set()


# --- what trains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vit", [False, True])
@every_tuning
def test_exactly_what_the_tuning_says_trains_of_clips_image_encoder(tuning, vit, monkeypatch):
    settings = {"name": tiny_vit(monkeypatch), "weights": "random"} if vit else {}
    plain, tuned = clip_backbone(**settings), clip_backbone(tuning, **settings)
    last = ("clip.visual.layer4.", "clip.visual.attnpool.")
    if vit:
        last = ("clip.visual.transformer.resblocks.7.", "clip.visual.ln_post.", "clip.visual.proj")
    expected = expected_names(plain, tuned, tuning, last)
    assert trainable(tuned) == {name for name in expected if name.startswith(VISUAL)}
    assert bool(trainable(tuned)) == (tuning != "frozen")


@every_tuning
def test_exactly_what_the_tuning_says_trains_of_clips_text_encoder(tuning):
    plain, tuned = clip_backbone(), clip_backbone(text=tuning)
    last = ("clip.transformer.resblocks.2.", "clip.ln_final.", "clip.text_projection")
    expected = expected_names(plain, tuned, tuning, last)
    assert trainable(tuned) == {name for name in expected if not name.startswith(VISUAL)} - {LOGIT}
    assert bool(trainable(tuned)) == (tuning != "frozen")


@every_tuning
def test_exactly_what_the_tuning_says_trains_of_hrnet(tuning):
    plain, tuned = hrnet_backbone(), hrnet_backbone(tuning)
    unread = tuple(f"net.stage4.0.fuse_layers.{other}." for other in (0, 1, 3))  # of maps of other strides
    expected = expected_names(plain, tuned, tuning, ("net.stage4.",))
    assert trainable(tuned) == {name for name in expected if not name.startswith(unread)}
    assert not any(".lora_" in name for name in all_of(tuned) if name.startswith(unread))
    assert bool(trainable(tuned)) == (tuning != "frozen")


def test_the_two_encoders_of_clip_are_tuned_apart():
    tuned = clip_backbone("lora", "norms")
    image = {name for name in trainable(tuned) if name.startswith(VISUAL)}
    assert image == {name for name in all_of(tuned) if ".lora_" in name}
    assert trainable(tuned) - image == trainable(clip_backbone(text="norms"))


def test_a_tuning_that_does_not_exist_is_a_wrong_setting():
    with pytest.raises(ConfigError, match="tuning: expected frozen, norms, last, lora or full, got 'some'"):
        set_tuning([[nn.Linear(2, 2)]], "some")


# --- LoRA --------------------------------------------------------------------------------------------------


def stored(tuned: nn.Module, name: str) -> torch.Tensor:
    """The weight or buffer of an encoder with LoRA that had the name before."""
    tensors = tuned.state_dict(keep_vars=True)
    path, _, last = name.rpartition(".")
    wrapped = (name, f"{path}.base_layer.{last}", f"{path}.parametrizations.{last}.original")
    return next(tensors[where] for where in wrapped if where in tensors)


def outputs_of(backbone: nn.Module) -> list[torch.Tensor]:
    if isinstance(backbone, HRNetBackbone):
        return [backbone(pictures())]
    maps = backbone.encode_maps(pictures(), (1, 2, 3, 4))
    pooled, tokens, _ = backbone.encode_texts(tokenize(PHRASES, trim=True))
    return [*maps, pooled, tokens]


@pytest.mark.parametrize("kind", ["clip", "vit", "hrnet"])
def test_lora_starts_as_the_frozen_encoder_and_moves_nothing_but_its_update(kind, monkeypatch):
    if kind == "hrnet":
        frozen, tuned = hrnet_backbone(), hrnet_backbone("lora")
    else:
        settings = {"name": tiny_vit(monkeypatch), "weights": "random"} if kind == "vit" else {}
        frozen = clip_backbone(**settings)
        tuned = clip_backbone("lora", "lora", lora_rank=4, **settings)
        for name, value in frozen.state_dict().items() if kind == "vit" else ():  # else shipped, the same
            stored(tuned, name).data.copy_(value)
    frozen.eval(), tuned.eval()
    with torch.no_grad():
        expected = outputs_of(frozen)
        for found, wanted in zip(outputs_of(tuned), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    before = copy_of(tuned)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # after the first step alone only the second factor has moved: the first one's is zero
        optimizer.zero_grad()
        sum(value.square().mean() for value in outputs_of(tuned)).backward()
        optimizer.step()
    changed = changed_names(before, tuned)
    assert changed
    assert all(".lora_" in name for name in changed)
    with torch.no_grad():
        for found, wanted in zip(outputs_of(tuned), expected, strict=True):
            assert (found - wanted).abs().max() > 1e-4


def test_the_update_has_the_rank_that_is_asked_for():
    tuned = clip_backbone("lora", "lora", lora_rank=3)
    weights = {name: p for name, p in tuned.named_parameters() if ".lora_A" in name}
    assert len(weights) > 10
    assert {p.shape[0] for p in weights.values()} == {3}
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) < 0.2 * sum(
        p.numel() for p in tuned.parameters()
    )


def test_frozen_batch_normalisation_stays_in_evaluation_mode_under_lora():
    model = build_small("dense-grounder", model__clip__tuning="lora", model__hrnet__tuning="lora").train()
    norms = [
        (name, part)
        for backbone in model.backbones().values()
        for name, part in backbone.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    assert len(norms) > 20
    assert [name for name, part in norms if part.training] == []
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.encode_images(pictures())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.training
    assert model.pyramid.training


# --- checkpoints and averages ------------------------------------------------------------------------------

LORA = {"model__clip__tuning": "lora", "model__clip__text_tuning": "lora", "model__hrnet__tuning": "lora"}


def test_a_checkpoint_with_lora_comes_back_and_holds_the_updates_alone(tmp_path):
    model = build_small("dense-grounder", **LORA).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    path = tmp_path / "model.safetensors"
    save_weights(path, model)
    written = load_file(path)
    of_backbones = {name for name in written if name.startswith(("clip.", "hrnet."))}
    assert of_backbones
    assert all(".lora_" in name for name in of_backbones)
    torch.manual_seed(7)
    other = build_model("dense-grounder", small_config("dense-grounder", **LORA).model).eval()
    arguments = (pictures(1), tokenize(PHRASES, trim=True), torch.tensor([0, 0]))
    with torch.no_grad():
        expected = model.predict(*arguments)
        assert not torch.allclose(other.predict(*arguments)["boxes_cxcywh"], expected["boxes_cxcywh"])
        load_weights(path, other)
        found = other.predict(*arguments)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert changed_names(copy_of(model), other) == set()


def test_a_model_with_lora_that_has_run_can_be_averaged():
    """It is copied whole, wrappers and parametrisations too."""
    model = build_small("dense-grounder", **LORA).train()
    arguments = (pictures(1), tokenize(PHRASES, trim=True), torch.tensor([0, 0]))
    model.predict(*arguments)["boxes_cxcywh"].sum().backward()
    average = MovingAverage(model, 0.5)
    before, copied = copy_of(model), copy.deepcopy(average.model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    average.update()
    for name, parameter in average.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, before[name] + 0.5)
        else:
            assert torch.equal(parameter, copied[name])


def test_the_tiny_vit_is_smaller_than_what_it_is_shown():
    assert TINY_VIT["vision_cfg"]["image_size"] != SIZE  # so that positions are interpolated in these tests
