"""What makes a step quick leaves what it learns alone."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models.maps import batch_of, build_small, small_config, weighted_loss
from vg_utils.config import ConfigError
from vg_utils.data import load_examples
from vg_utils.models.base import EndToEnd
from vg_utils.training.acceleration import RecordedImages
from vg_utils.training.engine import fit

wants_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")


def test_what_cannot_be_recorded_is_said_before_anything_is_written(tiny_scenes, tmp_path):
    changes = {"data__root": str(tiny_scenes), "train__graphs": True, "train__accumulation": 2}
    with pytest.raises(ConfigError, match=r"train\.graphs: expected a GPU"):
        fit(small_config("dense-grounder", **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@wants_gpu
@torch.enable_grad()
@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_a_recorded_encoder_learns_as_the_steps_do(tuning, tiny_scenes):
    batch = batch_of(load_examples(tiny_scenes, "train", strict=False)[:4]).to("cuda")
    tuned = {f"model__{backbone}__tuning": tuning for backbone in ("clip", "hrnet")}
    model = build_small("dense-grounder", **tuned, model__dense_grounder__dropout=0.0).cuda().train()
    other = copy.deepcopy(model)
    recorded, plain = RecordedImages(model), EndToEnd(other)
    recorded.record(batch.images, torch.float32)
    for name, buffer in model.named_buffers():  # recording left the statistics alone
        torch.testing.assert_close(buffer, other.get_buffer(name))
    for network in (recorded, plain):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        for _ in range(3):
            outputs = network(batch.images, batch.tokens, batch.image_index)
            weighted_loss(network.model, outputs, batch.target_boxes_cxcywh).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), atol=1e-4, rtol=1e-3, msg=name)
