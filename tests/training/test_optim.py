"""Groups of the optimizer and the shape of the schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from vg_utils.config import ConfigError, set_fields
from vg_utils.models import build_model
from vg_utils.training.optim import make_optimizer, make_scheduler


def groups_by_parameter(optimizer: torch.optim.Optimizer) -> dict[int, dict]:
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def test_only_what_is_trainable_is_optimized(tiny_config):
    model = build_model("clip-hrnet", tiny_config.model)
    groups = groups_by_parameter(make_optimizer(model, tiny_config.train))
    assert groups.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    frozen = {id(p) for backbone in model.backbones().values() for p in backbone.parameters()}
    assert not frozen & groups.keys()


def test_a_trainable_backbone_has_its_own_rate(tiny_config):
    config = set_fields(tiny_config, model__hrnet__tuning="last", train__lr=1e-3, train__backbone_lr=1e-6)
    model = build_model("clip-hrnet", config.model)
    groups = groups_by_parameter(make_optimizer(model, config.train))
    in_hrnet = [p for p in model.hrnet.parameters() if p.requires_grad]
    assert in_hrnet
    assert {groups[id(p)]["lr"] for p in in_hrnet} == {1e-6}
    assert {group["lr"] for key, group in groups.items() if key not in set(map(id, in_hrnet))} == {1e-3}


def test_biases_and_norms_do_not_decay(tiny_config):
    config = set_fields(tiny_config, train__weight_decay=0.3)
    model = build_model("clip-hrnet", config.model)
    groups = groups_by_parameter(make_optimizer(model, config.train))
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert groups[id(parameter)]["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_optimizer_by_name(tiny_config, name, kind):
    model = build_model("clip-hrnet", tiny_config.model)
    assert type(make_optimizer(model, set_fields(tiny_config.train, optimizer=name))) is kind


def test_nothing_to_train_is_an_error(tiny_config):
    model = build_model("clip-hrnet", tiny_config.model).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(model, tiny_config.train)


def test_warm_up_then_cosine_to_zero(tiny_config):
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 1.0}])
    scheduler = make_scheduler(optimizer, set_fields(tiny_config.train, warmup=0.1), steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def rate_of_each(model, train) -> dict[str, float]:
    """The rate of everything that trains, by name."""
    groups = groups_by_parameter(make_optimizer(model, train))
    return {name: groups[id(p)]["lr"] for name, p in model.named_parameters() if p.requires_grad}


# The blocks of each tower from the output to the input, by the beginnings of their names.
TOWERS = (
    (
        ("clip.clip.visual.layer4.", "clip.clip.visual.attnpool."),
        ("clip.clip.visual.layer3.",),
        ("clip.clip.visual.layer2.",),
        ("clip.clip.visual.layer1.",),
        tuple(f"clip.clip.visual.{kind}{i}." for kind in ("conv", "bn") for i in (1, 2, 3)),
    ),
    (
        ("clip.clip.transformer.resblocks.2.", "clip.clip.ln_final.", "clip.clip.text_projection"),
        ("clip.clip.transformer.resblocks.1.",),
        ("clip.clip.transformer.resblocks.0.",),
        ("clip.clip.token_embedding.", "clip.clip.positional_embedding"),
    ),
    (
        ("hrnet.net.stage4.", "hrnet.net.incre_modules."),
        ("hrnet.net.transition2.", "hrnet.net.stage3.", "hrnet.net.transition3."),
        ("hrnet.net.transition1.", "hrnet.net.stage2."),
        ("hrnet.net.conv1.", "hrnet.net.bn1.", "hrnet.net.conv2.", "hrnet.net.bn2.", "hrnet.net.layer1."),
    ),
)


@pytest.mark.parametrize("decay", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("tuning", ["full", "norms", "lora"])
def test_rates_fall_from_block_to_block_towards_the_input(tiny_config, decay, tuning):
    config = set_fields(
        tiny_config, model__clip__tuning=tuning, model__clip__text_tuning=tuning, model__hrnet__tuning=tuning,
        train__lr=1e-3, train__backbone_lr=1e-5, train__layer_decay=decay, train__weight_decay=0.1,
    )  # fmt: skip
    model = build_model("clip-hrnet", config.model)
    rates = rate_of_each(model, config.train)
    seen = set()
    for tower in TOWERS:
        for distance, block in enumerate(tower):
            names = {name for name in rates if name.startswith(block)}
            assert names or tuning != "full", block
            assert [rates[name] for name in names] == pytest.approx([1e-5 * decay**distance] * len(names))
            assert not names & seen
            seen |= names
    assert {name for name in rates if name.startswith(("clip.", "hrnet."))} == seen
    assert {rates[name] for name in rates.keys() - seen} == {1e-3}
    groups = make_optimizer(model, config.train).param_groups
    assert sum(len(group["params"]) for group in groups) == len(rates)
    if decay == 1:  # as before there were decays: one rate of the backbones, with and without weight decay
        assert len(groups) == len({(g["lr"], g["weight_decay"]) for g in groups}) <= 4
