"""The whole pipeline on real photographs with real phrases, where they are at hand (they are not in git)."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.data.samples import PHOTOS, needs_photos
from vg_utils.checkpoints import load_weights
from vg_utils.data import load_examples
from vg_utils.engine import fit
from vg_utils.evaluation import eval_batches, predict_rows
from vg_utils.models import build_model
from vg_utils.presets import preset

pytestmark = needs_photos


def write_random_backbones(folder, model_config, images):
    """Random RN50 and HRNet-W18 as local files, with the BatchNorm statistics of the pictures.

    Without statistics a random frozen network says nothing: in evaluation mode its activations vanish
    (CLIP) or overflow (HRNet).
    """
    model = build_model("clip-hrnet", model_config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over all batches
    nn.Module.train(model)
    with torch.no_grad():
        model.encode_images(images)
    for name, module in {"clip": model.clip.clip, "hrnet": model.hrnet.net}.items():
        state = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")


@pytest.mark.slow
def test_full_size_model_overfits_sixteen_photographs(tmp_path):
    torch.manual_seed(0)
    config = preset("refcocog")
    examples = load_examples(PHOTOS, "train")[:16]
    (batch,) = eval_batches(examples, config.model.image_size, batch_images=16)
    clip, hrnet = config.model.clip, config.model.hrnet
    random = {"clip": replace(clip, weights="random"), "hrnet": replace(hrnet, weights="random")}
    write_random_backbones(tmp_path, replace(config.model, **random), batch.images)
    model = replace(
        config.model,
        clip=replace(clip, weights=str(tmp_path / "clip.safetensors")),
        hrnet=replace(hrnet, weights=str(tmp_path / "hrnet.safetensors")),
        clip_hrnet=replace(config.model.clip_hrnet, dropout=0.0),
    )
    features = str(tmp_path / "features")
    data = replace(config.data, root=str(PHOTOS), limit_images=16, workers=0, features=features)
    train = replace(config.train, epochs=100, batch_images=16, lr=1e-3, cached=True, similarity_images=0)
    config = replace(config, model=model, data=data, train=train)
    fit(config, tmp_path / "run", progress=False)

    # val chooses the checkpoint and says nothing about overfitting, so look at the last weights
    model = build_model("clip-hrnet", config.model)
    load_weights(tmp_path / "run" / "checkpoint" / "last.safetensors", model)
    rows, _, _ = predict_rows(model, examples, [batch], config.model.image_size, "cpu")
    print(f"mIoU on the 16 training photographs: {rows['iou'].mean():.3f}")
    assert rows["iou"].mean() > 0.8


def test_every_split_is_read_and_counted():
    splits = {split: load_examples(PHOTOS, split) for split in ("train", "val", "test")}
    refs = {name: {s.ref_id for e in examples for s in e.expressions} for name, examples in splits.items()}
    assert {name: len(ids) for name, ids in refs.items()} == {"train": 43, "val": 9, "test": 13}
