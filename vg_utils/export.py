"""A model for places without this package: an encoder of images and a head for phrases, as files.

Two programs, as in the package: the first runs once an image, the second for any number of phrases about it.
`examples/ground_onnx.py` asks them with onnxruntime alone.
"""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vg_utils.config import ConfigError
from vg_utils.data.transforms import PADDING_RGB
from vg_utils.files import write_atomically
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.wordpiece import WordPiece
from vg_utils.predictor import Grounder

PARTS = ("image", "phrases")  # names of the files
OUTPUTS = ("boxes_cxcywh", "score", "presence", "heatmap")  # of the head, where the model has them
CHECKED_IMAGES = 20
TOLERANCE = 1e-3  # of shares of the square, scores and heat: a third of a pixel


def export(checkpoint: str, onnx_dir: str | None = None, torch_dir: str | None = None) -> None:
    """What the command does: write a checkpoint into one folder or both, and say how it went."""
    grounder = Grounder.load(checkpoint, "cpu")
    if torch_dir:
        export_torch(grounder, Path(torch_dir))
        print(f"image.pt2 and phrases.pt2 are in {torch_dir}")
    if onnx_dir:
        found = export_onnx(grounder, Path(onnx_dir))
        checked = "not checked: onnxruntime is missing" if found is None else f"within {found:.1e} of torch"
        print(f"image.onnx and phrases.onnx are in {onnx_dir}, {checked}")


class ImageEncoder(nn.Module):
    """uint8 (1, 3, S, S), letterboxed -> the features of an image."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Features:
        return self.model.encode_images(image)


class PhraseHead(nn.Module):
    """Features of one image and int64 (N, L) tokens -> what the model says of N phrases, see `OUTPUTS`."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Features, tokens: Tensor) -> Features:
        outputs = self.model(features, self.model.encode_texts(tokens), torch.zeros_like(tokens[:, 0]))
        return {name: outputs[name].float() for name in OUTPUTS if name in outputs}


@torch.no_grad()
def export_programs(grounder: Grounder) -> tuple[ExportedProgram, ExportedProgram]:
    """Image encoder and phrase head as `torch.export` has them, for any number and length of phrases.

    Raises:
        ConfigError: this model cannot be exported.
    """
    model, size = grounder.model, grounder.config.model.image_size
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=grounder.device)
    encoder, head = ImageEncoder(model), PhraseHead(model)
    features = encoder(image)
    tokens = model.tokenizer(["the red cup", "a cat on the left of the dog", "it"]).to(grounder.device)
    any_phrases = (dict.fromkeys(features), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own deprecations
            return (
                torch.export.export(encoder, (image,)),
                torch.export.export(head, (features, tokens), dynamic_shapes=any_phrases),
            )
    except Exception as error:  # torch raises many kinds, each of many lines
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{grounder.config.model.name}: torch cannot export this model: {reason}"
        ) from error


def export_torch(grounder: Grounder, folder: Path) -> None:
    """Write `image.pt2` and `phrases.pt2`, for `torch.export.load` and what builds on it."""
    for name, program in zip(PARTS, export_programs(grounder), strict=True):
        write_atomically(folder / f"{name}.pt2", lambda part, program=program: _save_pt2(program, part))


def export_onnx(grounder: Grounder, folder: Path) -> float | None:
    """Write `image.onnx`, `phrases.onnx`, `model.json` and, of the model for photographs, `tokenizer.json`.

    Returns:
        The largest difference of onnxruntime's answers from torch's, see `largest_difference`; None without
        onnxruntime.

    Raises:
        ConfigError: the packages for it are missing, or the model cannot be exported.
        RuntimeError: onnxruntime answers otherwise than torch.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--onnx: expected {' and '.join(missing)}: pip install onnx onnxscript onnxruntime"
        )
    for name, program in zip(PARTS, export_programs(grounder), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = list(program.call_spec.out_spec.context)  # both give a dict
            onnx = torch.onnx.export(program, dynamo=True, verbose=False, output_names=names)
        write_atomically(folder / f"{name}.onnx", lambda part, onnx=onnx: onnx.save(str(part)))
    about = {"origin": grounder.origin, "image_size": grounder.config.model.image_size}
    about |= {"padding_rgb": PADDING_RGB}
    write_atomically(folder / "model.json", (json.dumps(about, indent=2) + "\n").encode())
    if isinstance(grounder.model.tokenizer, WordPiece):
        write_atomically(folder / "tokenizer.json", grounder.model.tokenizer.as_json().encode())
    if find_spec("onnxruntime") is None:
        return None
    found = largest_difference(grounder, folder)
    if not found <= TOLERANCE:
        raise RuntimeError(
            f"{folder}: onnxruntime differs from torch by {found}, expected {TOLERANCE} at most"
        )
    return found


@torch.no_grad()
def largest_difference(grounder: Grounder, folder: Path, images: int = CHECKED_IMAGES) -> float:
    """Of all outputs about so many random images, from one phrase each to as many as there are images."""
    import onnxruntime

    encoder, head = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in PARTS)
    random, size, largest = np.random.default_rng(0), grounder.config.model.image_size, 0.0
    words = ("the", "a", "red", "blue", "cup", "man", "dog", "left", "right", "of", "on", "table", "small")
    for count in range(1, images + 1):
        pixels = random.integers(0, 256, (1, 3, size, size), dtype=np.uint8)
        phrases = [" ".join(random.choice(words, 1 + (count + i) % 9)) for i in range(count)]
        tokens = grounder.model.tokenizer(phrases)
        features = encoder.run(None, {"image": pixels})
        names = [one.name for one in head.get_inputs()]
        answers = head.run(None, dict(zip(names, [*features, tokens.numpy()], strict=True)))
        device = grounder.device
        own = ImageEncoder(grounder.model)(torch.from_numpy(pixels).to(device))
        expected = PhraseHead(grounder.model)(own, tokens.to(device))
        for answer, truth in zip(answers, expected.values(), strict=True):
            largest = max(largest, float(np.abs(answer - truth.cpu().numpy()).max()))
    return largest


def _save_pt2(program: ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:  # by its name torch would refuse another ending than .pt2
        torch.export.save(program, file)
