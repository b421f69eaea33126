"""Which precision a machine computes in, and that half of it leaves every model's answers whole."""

from __future__ import annotations

import math

import pytest
import torch

from tests.models.maps import batch_of, small_config
from vg_utils.config import TrainConfig
from vg_utils.data import load_examples
from vg_utils.models import MODELS, build_model
from vg_utils.models.attention import LayerNorm
from vg_utils.models.precision import autocast, best_precision
from vg_utils.training import acceleration

MACHINES = {  # is there a GPU, has it bfloat16, does torch say that it has -> what to compute in
    "processor": (False, False, False, "no"),
    "T4": (True, False, True, "fp16"),
    "A100": (True, True, True, "bf16"),
}


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch) -> str:
    """Torch as it speaks on a machine; the value is the precision that suits it."""
    there, native, said, expected = MACHINES[request.param]

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return said if including_emulation else native

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    return expected


def test_bfloat16_is_for_gpus_that_compute_in_it(machine):
    assert best_precision() == machine
    assert best_precision("cpu") == "no"
    assert not autocast("cpu")._enabled


@pytest.mark.parametrize(("asked", "kept"), [("auto", None), ("fp16", "fp16"), ("no", "no")])
def test_training_computes_in_what_inference_does(machine, monkeypatch, tmp_path, asked, kept):
    monkeypatch.setattr(acceleration, "Accelerator", lambda **options: options["mixed_precision"])
    assert acceleration.make_accelerator(TrainConfig(precision=asked), tmp_path) == (kept or machine)


def test_a_gpu_that_training_shall_not_use_decides_nothing(monkeypatch, tmp_path):
    """`ACCELERATE_USE_CPU=true` on a machine with an old GPU: there is no fp16 without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(acceleration, "Accelerator", lambda **options: options["mixed_precision"])
    assert acceleration.make_accelerator(TrainConfig(), tmp_path) == "fp16"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert acceleration.make_accelerator(TrainConfig(), tmp_path) == "no"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_leaves_answers_losses_and_gradients_whole(name, dtype, tiny_scenes):
    torch.manual_seed(0)
    model = build_model(name, small_config(name).model).train()
    batch = batch_of(load_examples(tiny_scenes, "train", strict=False)[:4], absent=int(model.learns_presence))
    with torch.autocast("cpu", dtype):
        outputs = model.predict(batch.images, batch.tokens, batch.image_index)
        losses = model.losses(outputs, batch.target_boxes_cxcywh)
    assert {value.dtype for value in (outputs | losses).values()} == {torch.float32}
    assert all(value.isfinite().all() for value in (outputs | losses).values())
    scale = 2.0**10  # as a gradient scaler does, so that small gradients do not vanish
    (scale * sum(model.loss_weights[key] * value for key, value in losses.items())).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


@torch.no_grad()
def test_layer_norm_in_float16_reckons_in_float32():
    """Squares of 300 are beyond float16's range; their mean and variance are not taken in it."""
    x = 300 * torch.randn(3, 4, 12)
    with torch.autocast("cpu", torch.float16):
        half = LayerNorm(12)(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), torch.nn.LayerNorm(12)(x), rtol=0.01, atol=0.01)
    assert math.isfinite(half.abs().max())
