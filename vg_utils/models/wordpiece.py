"""Sentences to the word pieces of a BERT (Devlin et al. 2019; WordPiece, Wu et al. 2016), for photographs.

The vocabulary is a part of bert-base-uncased's: the pieces of everyday words, and all single characters of
the Latin alphabet, so a word that is not in it falls into pieces that are.

>>> tokenize = WordPiece()
>>> tokenize.pieces("two giraffes")
['[CLS]', 'two', 'giraffe', '##s', '[SEP]']
>>> tokenize(["two giraffes", "a dog"]).shape
torch.Size([2, 5])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

__all__ = ["SPECIAL", "VOCABULARY", "WordPiece"]

VOCABULARY = Path(__file__).parent.parent / "weights" / "photos" / "vocab.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # the first pieces of every vocabulary, numbers 0 to 3
_PAD, _UNKNOWN, _START, _END = range(len(SPECIAL))
_LONGEST_WORD = 500  # letters; one that is longer becomes [UNK], as splitting takes its square in time


@dataclass(frozen=True)
class WordPiece:
    """Texts to numbers of pieces; each text is split once and remembered.

    Two of the same vocabulary are equal, share what they remember, and are small to pickle.

    Attributes:
        vocabulary: a file with a piece a line, the first four being `SPECIAL`.
        context_length: most tokens of a row, with [CLS] and [SEP].
    """

    vocabulary: Path = VOCABULARY
    context_length: int = 77

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokens of N sentences.

        Returns:
            int64 (N, L), L the longest row: [CLS], the text's pieces, [SEP], then 0 as padding. A text with
            more than `context_length - 2` pieces is cut (`cuts` tells) and still closes with [SEP].

        Raises:
            TypeError: a single string came instead of a list of them.
        """
        if isinstance(texts, str):
            raise TypeError(f"expected a list of texts, got the single text {texts!r}: write [text]")
        rows = [self._row(text) for text in texts]
        longest = max(map(len, rows), default=2)  # without any text, as long as the row of an empty one
        padded = [row + (_PAD,) * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)

    def __len__(self) -> int:
        """How many pieces there are."""
        return _splitter(self.vocabulary).get_vocab_size()

    def cuts(self, text: str) -> bool:
        """Whether the end of the text is lost."""
        return len(_ids(self.vocabulary, text)) > self.context_length - 2

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The parts of a text that become [UNK], such as letters of another alphabet, without repeats."""
        encoded = _splitter(self.vocabulary).encode(text, add_special_tokens=False)
        pieces = zip(encoded.ids, encoded.offsets, strict=True)
        return tuple(dict.fromkeys(text[start:end] for i, (start, end) in pieces if i == _UNKNOWN))

    def as_json(self) -> str:
        """As a file of `tokenizers`; its `Tokenizer.from_str` and `encode_batch` then give the same rows."""
        whole = Tokenizer.from_str(_splitter(self.vocabulary).to_str())
        start, end = ((SPECIAL[i], i) for i in (_START, _END))
        whole.post_processor = processors.BertProcessing(end, start)
        whole.enable_truncation(self.context_length)
        whole.enable_padding(pad_id=_PAD, pad_token=SPECIAL[_PAD])
        return whole.to_str()

    def pieces(self, text: str) -> list[str]:
        """What the model reads of one text."""
        splitter = _splitter(self.vocabulary)
        return [splitter.id_to_token(i) for i in self._row(text)]

    def _row(self, text: str) -> tuple[int, ...]:
        return (_START, *_ids(self.vocabulary, text)[: self.context_length - 2], _END)


@lru_cache(maxsize=200_000)  # RefCOCOg's 95,010 sentences and their mirrored twins
def _ids(vocabulary: Path, text: str) -> tuple[int, ...]:
    """The pieces of a whole text, without [CLS] and [SEP]."""
    # One text at a time: a batch would start threads, and loaders fork.
    return tuple(_splitter(vocabulary).encode(text, add_special_tokens=False).ids)


@cache
def _splitter(vocabulary: Path) -> Tokenizer:
    """BERT's own splitting: lower case, no accents, words and punctuation, then the longest pieces first.

    Raises:
        ValueError: the vocabulary does not begin with the special pieces, or has one twice.
    """
    pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    if tuple(pieces[: len(SPECIAL)]) != SPECIAL or len(set(pieces)) != len(pieces):
        raise ValueError(
            f"{vocabulary}: expected different pieces, {', '.join(SPECIAL)} first, got {pieces[:4]}"
        )
    numbers = {piece: number for number, piece in enumerate(pieces)}
    splitter = Tokenizer(
        models.WordPiece(numbers, unk_token=SPECIAL[_UNKNOWN], max_input_chars_per_word=_LONGEST_WORD)
    )
    splitter.normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return splitter
