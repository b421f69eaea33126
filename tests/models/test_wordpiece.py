"""Word pieces: nothing unknown in ASCII, one row a text, padding at the end."""

from __future__ import annotations

import pickle
import random
import string

import pytest
import torch

from vg_utils.models.wordpiece import SPECIAL, WordPiece

tokenize = WordPiece()


def test_rows_start_and_end_and_are_padded_to_the_longest():
    tokens = tokenize(["A dog", "", "the two dogs on the LEFT"])
    assert tokens.dtype == torch.int64
    assert tokens.shape == (3, 8)
    assert tokens[1].tolist() == [2, 3, 0, 0, 0, 0, 0, 0]
    assert tokens[0, 0] == 2
    assert tokens[0, 3:].tolist() == [3, 0, 0, 0, 0]
    assert torch.equal(tokenize(["a dog"]), tokens[:1, :4])  # case does not matter, nor does the company
    assert tokenize([]).shape == (0, 2)
    assert int(tokenize(["zebra " * 90]).max()) < len(tokenize)


def test_a_long_text_is_cut_and_says_so():
    text = "dog " * 75
    assert not tokenize.cuts(text)
    assert tokenize.cuts(text + "dog")
    tokens = tokenize([text, text + "cat"])
    assert tokens.shape == (2, tokenize.context_length)
    assert torch.equal(tokens[0], tokens[1])


def test_a_single_string_is_an_error():
    with pytest.raises(TypeError, match=r"write \[text\]"):
        tokenize("a dog")


def test_no_ascii_word_is_unknown():
    chance = random.Random(0)
    for length in (1, 2, 3, 7, 40, 200):
        for letters in (string.ascii_letters, string.digits, string.printable):
            text = "".join(chance.choices(letters, k=length))
            assert SPECIAL[1] not in tokenize.pieces(text), text
    assert all(SPECIAL[1] not in tokenize.pieces(character) for character in string.printable)
    assert SPECIAL[1] not in tokenize.pieces("naïve café")
    assert tokenize.pieces("a [SEP] b").count("[SEP]") == 1  # what people type is never special
    assert tokenize.pieces("狗")[1] == SPECIAL[1]


def test_it_can_go_to_a_loaders_process():
    tokenize(["fill what it remembers"])
    again = pickle.loads(pickle.dumps(tokenize))
    assert again == tokenize
    assert torch.equal(again(["a dog"]), tokenize(["a dog"]))


def test_a_vocabulary_has_its_special_pieces_first(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"\[PAD\], \[UNK\]"):
        WordPiece(tmp_path / "vocab.txt")(["a"])


def test_parts_without_a_meaning_are_named():
    tokenize = WordPiece()
    assert tokenize.unknown_words("the cat 日本 by 日") == ("日", "本")
    assert tokenize.unknown_words("a qwxzkv giraffe’s") == ()
