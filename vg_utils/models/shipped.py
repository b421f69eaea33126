"""The weights that come with the package: files in `vg_utils/weights`, with matrices in 8 bits.

A weight is kept as its share, in 127ths, of the largest of its row (of an output channel); the rows' scales
stand beside them. RESULTS.md has the scores before and after.

A CLIP's token table has 49,408 rows, of which RefScenes uses about a hundred. Only those are in the file; the
rows of words that no RefScenes phrase holds are zero.

An encoder that was finetuned in full would take as much room again as the one that the package has anyway. Of
its matrices a file may hold the change alone, as the product of two thin ones: what low-rank updates are when
they are trained (Hu et al. 2022), and as good here when they are cut from a change that was not (measured).

BatchNorm's running statistics depend on the size of the input, so a file holds them for several sizes, under
names such as `bn1.running_mean@128`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vg_utils.models.weight_files import check_finite, read_weights

WEIGHTS_DIR = Path(__file__).parent.parent / "weights"
_TABLE, _ROWS = "token_embedding.weight", "token_embedding.rows"
_LEFT, _RIGHT = ".change_left", ".change_right"  # a matrix is the model's own and the product of the two
_SCALE, _LARGEST = ".int8_scale", 127  # a scale's name is that of its matrix, and this
_HALF = 2**-10  # relative error of float16, where a number is neither too large for it nor too small
_FEW = 32  # numbers: what is shorter costs no room, and stays as it is

Statistics = Mapping[int, Mapping[str, Tensor]]  # of BatchNorm: by size of the input in pixels, then by name


def pack(
    module: nn.Module,
    tokens: Iterable[int] | None = None,
    statistics: Statistics | None = None,
    smallest: int = 0,
) -> dict[str, Tensor]:
    """Weights as they are shipped: matrices in 8 bits, of a token table only the rows of `tokens`.

    Args:
        module: whose weights they are.
        tokens: the rows of the token table to keep; None keeps all.
        statistics: what takes the place of the module's own running statistics.
        smallest: matrices of fewer numbers stay as they are, see `pack_tensors`.
    """
    packed = pack_tensors(module.state_dict(), tokens, smallest)
    for size, tensors in (statistics or {}).items():
        for key, value in tensors.items():
            packed.pop(key, None)
            packed[f"{key}@{size}"] = value.cpu().contiguous()
    return packed


def pack_tensors(
    tensors: Mapping[str, Tensor], tokens: Iterable[int] | None, smallest: int = 0
) -> dict[str, Tensor]:
    """Tensors with matrices in 8 bits and of token tables only the rows of `tokens` (None: all).

    Those of fewer numbers than `smallest` stay as they are: an EfficientNet begins with narrow convolutions,
    a hundredth of its weights, from which most of what rounding does to its maps comes (measured).
    """
    packed = {}
    rows = None if tokens is None else torch.tensor(sorted(set(tokens)))  # (R,)
    for name, value in tensors.items():
        value = value.detach().cpu()
        if rows is not None and name.endswith(_TABLE):
            packed[name.removesuffix(_TABLE) + _ROWS] = rows.clone()
            value = value[rows]  # (R, width)
        if value.is_floating_point() and value.ndim > 1 and value.numel() >= smallest:
            largest = value.float().abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny)
            packed[name + _SCALE] = largest / _LARGEST  # (rows,)
            value = (value / _by_row(packed[name + _SCALE], value)).round().to(torch.int8)
        packed[name] = value.contiguous()
    return packed


def pack_changes(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Matrices as the best change of so low a rank of those of the same names in `base`, in float16."""
    packed = {}
    for name, value in tensors.items():
        left, strengths, right = torch.linalg.svd(value.float() - base[name].float(), full_matrices=False)
        packed[name + _LEFT] = (left[:, :rank] * strengths[:rank]).half().contiguous()  # (rows, rank)
        packed[name + _RIGHT] = right[:rank].half().contiguous()  # (rank, columns)
    return packed


def halved(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 as float16 where no more is lost than its rounding: norms, biases, the scales of rows."""

    def halve(value: Tensor) -> Tensor:
        half = value.half() if value.dtype == torch.float32 and value.numel() >= _FEW else value
        return half if torch.allclose(half.to(value.dtype), value, rtol=_HALF, atol=1e-7) else value

    return {name: halve(value) for name, value in packed.items()}


def changed(packed: Mapping[str, Tensor]) -> set[str]:
    """The matrices that a file tells by their change."""
    return {name.removesuffix(_LEFT) for name in packed if name.endswith(_LEFT)}


def _by_row(scale: Tensor, matrix: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (matrix.ndim - 1))


def unpack_tensors(packed: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack_tensors` and `pack_changes`, up to rounding.

    Args:
        packed: what they gave.
        own: the model's tensors, of the right shapes; changes are added to them.

    Raises:
        ValueError: scales, rows or changes that do not fit what they are of; the message names them.
    """
    tensors = dict(packed)
    for name in changed(packed):
        left, right = tensors.pop(name + _LEFT), tensors.pop(name + _RIGHT, None)
        if name not in own or right is None or own[name].shape != (*left.shape[:1], *right.shape[1:]):
            raise ValueError(f"{name + _LEFT}: expected the change of a matrix, got {_told(left)}")
        tensors[name] = own[name] + left.to(own[name]) @ right.to(own[name])
    for name in [name for name in packed if name + _SCALE in packed]:
        scale, matrix = tensors.pop(name + _SCALE), tensors[name]
        if not scale.is_floating_point() or scale.shape != matrix.shape[:1]:
            raise ValueError(f"{name + _SCALE}: expected a number a row of {name}, got {_told(scale)}")
        tensors[name] = matrix * _by_row(scale.float(), matrix)
        check_finite({name: tensors[name]}, "in 8 bits")
    for name in [name for name in packed if name.endswith(_ROWS)]:
        table, rows = name.removesuffix(_ROWS) + _TABLE, tensors.pop(name)
        if table not in tensors or table not in own or tensors[table].shape[1:] != own[table].shape[1:]:
            raise ValueError(f"{name}: expected rows of a token table, got none that fit under {table}")
        whole = torch.zeros(own[table].shape, dtype=tensors[table].dtype)
        if not _are_rows(rows, len(tensors[table]), len(whole)):
            count = len(tensors[table])
            raise ValueError(f"{name}: expected {count} rows of {len(whole)}, got {_told(rows)}")
        whole[rows] = tensors[table]
        tensors[table] = whole
    return tensors


def _are_rows(rows: Tensor, count: int, of: int) -> bool:
    """Whether they are so many different row numbers, in order, of so many."""
    if rows.dtype != torch.int64 or rows.shape != (count,):
        return False
    return not count or bool(rows[0] >= 0 and rows[-1] < of and (rows.diff() > 0).all())


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def load_shipped(module: nn.Module, name: str, image_size: int) -> nn.Module:
    """Put the shipped weights called `name` into the module; every one has to be there and to fit.

    Args:
        module: where to.
        name: of the backbone.
        image_size: side of the model's square input in pixels: of running statistics, those of the size
            that is nearest to it are taken.

    Raises:
        FileNotFoundError: nothing of this name is shipped; the message lists what is.
    """
    path = WEIGHTS_DIR / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in WEIGHTS_DIR.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no weights are shipped for {name!r}; shipped: {names}")
    packed = unpack_tensors(read_weights(path), module.state_dict())
    sizes = {int(key.rpartition("@")[2]) for key in packed if "@" in key}
    if sizes:
        chosen = min(sizes, key=lambda size: abs(math.log(size / image_size)))
        own = {key: value for key, value in packed.items() if "@" not in key}
        suffix = f"@{chosen}"
        packed = own | {k.removesuffix(suffix): v for k, v in packed.items() if k.endswith(suffix)}
    module.load_state_dict(packed)  # copies into the module's own float32
    return module
