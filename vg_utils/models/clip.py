"""OpenAI's CLIP and its relatives, through open_clip: the first family of backbones (Radford et al. 2021)."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import resize_pos_embed
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vg_utils.config import ClipConfig, ConfigError
from vg_utils.data.records import LARGEST_SETTINGS, read_json
from vg_utils.models.attention import LayerNorm, QuickGELUMlp, SelfAttention
from vg_utils.models.backbones import Backbone, TextFeatures, WeightsError, normalise, ways_out
from vg_utils.models.finetuning import Tower, set_tuning
from vg_utils.models.shipped import load_shipped
from vg_utils.models.weight_files import read_weights

open_clip.add_model_config(Path(__file__).parent / "configs")  # registers `scenes-rn`

CONTEXT_LENGTH = 77  # tokens, with the start and the end token
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")  # of letters, an apostrophe within; or a number
RESNET_STRIDES = (4, 8, 16, 32)  # of levels 1 to 4
BESIDE_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's files
WEIGHTS_OF_FOLDERS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")

OF_TRANSFORMERS = (
    "these are weights for transformers' CLIP, which names them otherwise; take open_clip's of the same "
    "model (open_clip_model.safetensors and open_clip_config.json, which most CLIPs on the hub have as well)"
)


class ClipBackbone(Backbone):
    """CLIP's two encoders.

    Its levels are the stages of a ResNet, or the ends of the quarters of a ViT's blocks.
    """

    def __init__(self, config: ClipConfig, image_size: int) -> None:
        super().__init__()
        self.clip = load_clip(config, image_size)
        self.source = config.weights
        self.image_size = image_size
        quicken(self.clip)
        clip, visual = self.clip, self.clip.visual
        self.is_resnet = hasattr(visual, "attnpool")
        if not self.is_resnet and not hasattr(visual, "patch_size"):
            raise ConfigError(f"model.clip.name: expected a CLIP with a ResNet or a ViT, got {config.name!r}")
        stride = RESNET_STRIDES[-1] if self.is_resnet else visual.patch_size[0]
        _resize_positions(visual.attnpool if self.is_resnet else visual, image_size // stride)
        self.tokenizer = ClipTokenizer()
        self.embed_dim: int = visual.output_dim
        self.text_width: int = clip.positional_embedding.shape[1]
        self.levels: dict[int, tuple[int, int]] = {}
        for level, resnet_stride in enumerate(RESNET_STRIDES, 1):
            if self.is_resnet:
                self.levels[level] = (getattr(visual, f"layer{level}")[-1].conv3.out_channels, resnet_stride)
            else:
                self.levels[level] = (visual.positional_embedding.shape[1], stride)
        clip.requires_grad_(False)  # `logit_scale`, of CLIP's own loss, is in no tower
        image, text = self.towers()
        set_tuning(text, config.text_tuning, config.lora_rank)
        set_tuning(image, config.tuning, config.lora_rank)
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    def encode_images(self, images: Tensor) -> Tensor:
        return self.clip.visual(normalise(images, self.mean, self.std))

    def encode_maps(self, images: Tensor, levels: tuple[int, ...] = (4,)) -> list[Tensor]:
        images = normalise(images, self.mean, self.std)
        depth = 4 if self.is_resnet else len(self.clip.visual.transformer.resblocks)
        indices = [level if self.is_resnet else level * depth // 4 - 1 for level in levels]
        features = self.clip.visual.forward_intermediates(
            images, indices=indices, stop_early=True, intermediates_only=True
        )
        return features["image_intermediates"]

    def unknown_words(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """The words with a token whose row in the table is zero.

        Shipped weights have rows for the words of RefScenes alone: to them all others are the same.
        """
        table = self.clip.token_embedding.weight
        words = [dict.fromkeys(_WORD.findall(text.lower())) for text in texts]
        ids = {word: _word_ids(word) for word in chain.from_iterable(words)}
        asked = list(dict.fromkeys(chain.from_iterable(ids.values())))
        in_table = dict(zip(asked, table[asked].any(1).tolist(), strict=True))  # at once: a GPU is waited for
        known = {word: all(in_table[token] for token in tokens) for word, tokens in ids.items()}
        return [tuple(word for word in found if not known[word]) for found in words]

    def towers(self) -> tuple[Tower, Tower]:
        clip, v = self.clip, self.clip.visual
        if self.is_resnet:
            stem = [v.conv1, v.bn1, v.conv2, v.bn2, v.conv3, v.bn3]
            image = [stem, [v.layer1], [v.layer2], [v.layer3], [v.layer4, v.attnpool]]
        else:
            *blocks, last = v.transformer.resblocks
            stem = [v.conv1, v.class_embedding, v.positional_embedding, v.ln_pre]
            image = [stem, *([block] for block in blocks), [last, v.ln_post, v.proj]]
        *blocks, last = clip.transformer.resblocks
        first = [clip.token_embedding, clip.positional_embedding]
        text = [first, *([block] for block in blocks), [last, clip.ln_final, clip.text_projection]]
        return image, text

    def freeze_unread(self, levels: tuple[int, ...], pooled_images: bool, pooled_texts: bool) -> None:
        visual = self.clip.visual
        if not pooled_texts:
            self.clip.text_projection.requires_grad_(False)
        if pooled_images:
            return
        if not levels:
            unread = [visual]
        elif self.is_resnet:
            unread = [
                *(getattr(visual, f"layer{level}") for level in range(max(levels) + 1, 5)),
                visual.attnpool,
            ]
        else:
            blocks = visual.transformer.resblocks
            unread = [*blocks[max(levels) * len(blocks) // 4 :], visual.ln_post]
            visual.proj.requires_grad_(False)
        for module in unread:
            module.requires_grad_(False)

    def encode_texts(self, tokens: Tensor) -> TextFeatures:
        """(N, L) int64 CLIP tokens, L up to 77 -> pooled and token features.

        The text transformer is causal, so cutting padding columns off `tokens` changes nothing but the time.
        """
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]  # (N, L, width)
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        end = tokens.argmax(dim=-1)  # the end-of-text token has the highest number
        pooled = x[torch.arange(x.shape[0], device=x.device), end] @ clip.text_projection
        return TextFeatures(pooled, x, tokens != 0)


def load_clip(config: ClipConfig, image_size: int = 224) -> nn.Module:
    """An open_clip CLIP with the weights that the config asks for, float32, on the CPU.

    `image_size` matters to shipped weights alone, see `vg_utils.models.shipped`.

    Raises:
        ConfigError: no such model, or a model without QuickGELU for OpenAI's weights.
        WeightsError: weights that cannot be had or do not fit.
    """
    name, weights = config.name, config.weights
    if name not in open_clip.list_models():
        raise ConfigError(f"model.clip.name: open_clip has no model {name!r}")
    if weights == "random":
        return _unwarned(name)
    if weights == "openai" and not _quick_gelu(name):
        raise ConfigError(
            f"model.clip.name: OpenAI's weights need QuickGELU, got {name!r}; use {name + '-quickgelu'!r}"
        )
    path = Path(weights).expanduser()
    try:
        if weights == "openai":
            with _root_logger_off():  # it would log the failure that is raised below
                return open_clip.create_model(name, pretrained="openai")
        if weights == "shipped":
            return load_shipped(_unwarned(name), name, image_size)
        if path.is_dir():
            return _load_strictly(_unwarned(_of_folder(path)), _weights_of_folder(path))
        return _load_strictly(_unwarned(name), path)
    except Exception as error:  # open_clip, the hub, torch and the file system each raise their own
        raise WeightsError(ways_out("CLIP", name, weights, "model.clip.weights", error)) from error


def _load_strictly(clip: nn.Module, path: Path) -> nn.Module:
    """Put a file of weights into a CLIP: every one has to be there and fit; positions are interpolated."""
    state = read_weights(path)
    if any(name.startswith("vision_model.") for name in state):
        raise ValueError(OF_TRANSFORMERS)
    for name in BESIDE_WEIGHTS:
        state.pop(name, None)
    if "logit_scale" in state:  # a number in some files, a vector of one in others
        state["logit_scale"] = state["logit_scale"].reshape(clip.logit_scale.shape)
    resize_pos_embed(state, clip)
    clip.load_state_dict(state)
    return clip


def _of_folder(folder: Path) -> str:
    """open_clip's name for the architecture that a folder describes.

    Raises:
        ValueError: it is transformers' folder, or would be put together from other libraries' models, which
            open_clip fetches by name.
    """
    if (folder / "config.json").is_file() and not (folder / "open_clip_config.json").is_file():
        raise ValueError(OF_TRANSFORMERS)
    described = read_json(folder / "open_clip_config.json", "open_clip's settings", LARGEST_SETTINGS)
    described = described["model_cfg"]
    parts = (described, described["vision_cfg"], described["text_cfg"])
    others = sorted(key for part in parts for key in part if key.startswith(("hf_", "timm_")))
    if others:
        raise ValueError(f"{folder}: expected a ResNet or a ViT of open_clip's own, got {others[0]}")
    return f"local-dir:{folder}"


def _weights_of_folder(folder: Path) -> Path:
    """open_clip's own file, or else the only one there is."""
    suffixes = (".safetensors", ".bin", ".pth", ".pt")
    found = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    named = [folder / name for name in WEIGHTS_OF_FOLDERS if folder / name in found]
    if not named and len(found) != 1:
        raise FileNotFoundError(f"{folder}: expected {WEIGHTS_OF_FOLDERS[0]}, found {len(found)} other files")
    return (named or found)[0]


def _unwarned(name: str) -> nn.Module:
    """A CLIP with random weights, without open_clip's warning that they are random: that was asked for."""
    with _root_logger_off():
        return open_clip.create_model(name, load_weights=False)


@contextlib.contextmanager
def _root_logger_off() -> Iterator[None]:
    """Nothing that is logged on the root logger itself, as open_clip does, is shown or sets up logging."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # with no handler at all, `logging.warning` would install one for good
    root.addFilter(_nothing)
    try:
        yield
    finally:
        root.removeFilter(_nothing)
        root.removeHandler(handler)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def quicken(clip: nn.Module) -> None:
    """Let the blocks of transformers compute what they did, in less time: parameters and names stay."""
    for block in (module for module in clip.modules() if isinstance(module, ResidualAttentionBlock)):
        if block.attn.batch_first:
            block.attn.__class__ = SelfAttention
        block.ln_1.__class__ = block.ln_2.__class__ = LayerNorm
        if isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.__class__ = QuickGELUMlp


def _quick_gelu(name: str) -> bool:
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))


def _resize_positions(module: nn.Module, side: int) -> None:
    """Interpolate the positions (1 + s*s, C) of an attention pooling or a ViT to another side, in place."""
    positions = module.positional_embedding.detach()
    if len(positions) != 1 + side * side:
        module.positional_embedding = nn.Parameter(resized_positions(positions, side).contiguous())


def resized_positions(positions: Tensor, side: int) -> Tensor:
    """Positions of a class token and of a square of places, interpolated: (1 + s*s, C) -> (1 + side^2, C)."""
    return resample_abs_pos_embed(positions[None], [side, side], num_prefix_tokens=1, antialias=False)[0]


class ClipTokenizer:
    """CLIP's byte-pair tokens of texts, cut to the longest row; see `tokenize`."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return tokenize(texts, trim=True)

    def cuts(self, text: str) -> bool:
        """Whether the end of the text is lost."""
        return len(_tokenizer().encode(text)) > CONTEXT_LENGTH - 2


def tokenize(texts: Sequence[str], trim: bool = False) -> Tensor:
    """CLIP's byte-pair tokens of the texts.

    Args:
        texts: N sentences. A text of more than 75 tokens is cut, and still closes with the end token.
        trim: cut the columns of padding that all rows share. CLIP's text transformer is causal and reads its
            feature at the end token, so the padding behind it changes nothing but the time. (The model must
            cut its positions and its causal mask to L too, which open_clip's own `encode_text` does not.)

    Returns:
        int64 (N, 77), or (N, L) with L <= 77 the longest row when trimmed. Each row is start token (49406),
        text, end token (49407, the row's largest: `tokens.argmax(-1)` finds it), then 0 as padding.

    Raises:
        TypeError: a single string came instead of a list of them.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts, got the single text {texts!r}: write [text]")
    rows = [_token_ids(text) for text in texts]
    longest = max(map(len, rows), default=2)  # without any text, as long as the row of an empty one
    tokens = torch.zeros(len(rows), longest if trim else CONTEXT_LENGTH, dtype=torch.int64)
    lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
    tokens[torch.arange(tokens.shape[1]) < lengths[:, None]] = torch.tensor(
        list(chain.from_iterable(rows)), dtype=torch.int64
    )
    return tokens


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


@lru_cache(maxsize=200_000)  # RefCOCOg's 95,010 sentences and their mirrored twins; some 100 MB at most
def _token_ids(text: str) -> tuple[int, ...]:
    """Start, text and end tokens of one text, cut to `CONTEXT_LENGTH` with the end token kept."""
    tokenizer = _tokenizer()
    if text.isascii() and "&" not in text:  # nothing to repair: its tokens are those of its words
        ids = [token for word in text.split() for token in _word_ids(word)]
    else:
        ids = tokenizer.encode(text)
    return (tokenizer.sot_token_id, *ids[: CONTEXT_LENGTH - 2], tokenizer.eot_token_id)


@lru_cache(maxsize=100_000)
def _word_ids(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(word))
