"""Can a full-size model learn a few photographs by heart? Its head does, on random frozen backbones.

    python -m experiments.overfit --data data/refcocog --model dense-grounder --clip ViT-B-16-quickgelu

A model that cannot do this has a mistake in it; one that can has shown nothing else. No weights are
downloaded, so it also says whether the parts of a full-size model fit together where there is no network.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.plan import FROZEN
from vg_utils.config import Config, ModelConfig, set_fields
from vg_utils.data import load_examples
from vg_utils.evaluation.rows import eval_batches, predict_rows
from vg_utils.models import build_model
from vg_utils.models.checkpoints import load_weights
from vg_utils.models.clip import ClipTokenizer
from vg_utils.presets import preset
from vg_utils.training.engine import fit


def write_random_backbones(folder: Path, model: ModelConfig, images: Tensor) -> dict[str, str]:
    """Random backbones as local files, with the BatchNorm statistics of the images (B, 3, S, S).

    Without statistics a random frozen network says nothing: in evaluation mode its activations vanish
    (CLIP's ResNet) or overflow (HRNet).

    Returns:
        the fields of a config that name the files.
    """
    net = build_model(model.name, model)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over all batches
    nn.Module.train(net)
    with torch.no_grad():
        net.encode_images(images)
    files = {}
    for name, module in {"clip": net.clip.clip, "hrnet": net.hrnet.net}.items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
        files[f"model__{name}__weights"] = str(path)
    return files


def overfit(config: Config, folder: Path) -> float:
    """Train on the first `config.data.limit_images` images, in one batch, and answer them.

    Args:
        config: of a model with CLIP and HRNet; its backbones are replaced by random ones.
        folder: an empty folder, for backbones, features and the run.

    Returns:
        the mean IoU on these same images, of the last weights: val, which chooses the best, says nothing
        about learning by heart.
    """
    torch.manual_seed(config.train.seed)
    random = {"model__clip__weights": "random", "model__hrnet__weights": "random"}
    config = set_fields(config, **FROZEN, **random, data__features=str(folder / "features"))
    count, size = config.data.limit_images, config.model.image_size
    examples = load_examples(config.data.root, "train")[:count]
    (batch,) = eval_batches(examples, size, ClipTokenizer(), batch_images=count)
    files = write_random_backbones(folder, config.model, batch.images)
    config = set_fields(config, **files, train__cached=True, train__batch_images=count)
    fit(config, folder / "run")
    model = build_model(config.model.name, config.model)
    load_weights(folder / "run" / "checkpoint" / "last.safetensors", model)
    return float(predict_rows(model, examples, [batch], size, "cpu").rows["iou"].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, say how well it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder in RefCOCOg's layout")
    parser.add_argument("--model", default="clip-hrnet")
    parser.add_argument("--clip", default="RN50-quickgelu", help="open_clip's name of the architecture")
    parser.add_argument("--size", type=int, default=224, help="side of the model's square input in pixels")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=100, help="of one batch each")
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args(arguments)
    config = set_fields(
        preset("refcocog", options.model),
        data__root=options.data,
        data__limit_images=options.images,
        data__absent=0,
        data__workers=0,
        model__image_size=options.size,
        model__clip__name=options.clip,
        model__clip_hrnet__dropout=0.0,
        model__dense_grounder__dropout=0.0,
        model__transvg__dropout=0.0,
        train__epochs=options.epochs,
        train__lr=options.lr,
        train__ema=0.0,
        train__similarity_images=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        miou = overfit(config, Path(folder))
    print(f"{options.model} on {options.clip}: mIoU on its {options.images} training images {miou:.3f}")


if __name__ == "__main__":
    main()
