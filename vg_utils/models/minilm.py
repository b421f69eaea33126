"""A small BERT that reads phrases: MiniLM (Wang et al. 2020), as Sentence-BERT's authors trained it.

The same function as transformers' `BertModel` without its pooler, in the project's own attention: importing
transformers takes seconds, and low-rank updates find plain matrices here (`vg_utils.models.finetuning`).
Weights of a `BertModel` are put into it by `experiments.photo_weights`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vg_utils.models.attention import Attention, LayerNorm

EPS = 1e-12  # BERT's, of all its norms


class MiniLM(nn.Module):
    """Token numbers to token vectors.

    Args:
        vocabulary: number of pieces; piece 0 is padding.
        length: most tokens of a text.
        width: of the vectors, C.
        heads: of each attention, a divisor of it.
        layers: how many.
    """

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        # BERT adds the vector of "first sentence" to each token as well; here it is part of the positions.
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.norm = LayerNorm(width, eps=EPS)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        for table in (self.words.weight, self.positional_embedding):
            nn.init.normal_(table, std=0.02)  # as BERT

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Read N phrases.

        Args:
            tokens: int64 (N, L).
            mask: bool (N, L), True for real tokens; padding is seen by none of them.

        Returns:
            (N, L, C).
        """
        x = self.norm(self.words(tokens) + self.positional_embedding[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, ~mask)
        return x


class EncoderLayer(nn.Module):
    """Attention, then two matrices, each normalised after it was added (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(width, heads), LayerNorm(width, eps=EPS)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.feed_forward_norm = LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """(N, L, C), padding (N, L) True where there is no token -> (N, L, C)."""
        x = self.attention_norm(x + self.attention(x, x, padding))
        return self.feed_forward_norm(x + self.feed_forward(x))


def mean_of_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, Sentence-BERT's pooling: (N, L, C), (N, L) bool -> float32 (N, C)."""
    weights = mask / mask.sum(1, keepdim=True)
    return (x * weights[..., None]).sum(1)
