"""Cleaning, the left-right swap, and CLIP's tokens."""

import json
import random

import open_clip
import pytest
import torch

from vg_utils.data.text import clean_text, names_color, swap_left_right
from vg_utils.models.clip import CONTEXT_LENGTH, tokenize
from vg_utils.refscenes.sampling import COLORS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A\tMan \n on the  LEFT ", "a man on the left"),
        ("cafe\u0301 PURÉE", "café purée"),  # an accent of its own becomes part of the letter
        ("Straße, Ελλάδα, 中文 99%", "straße, ελλάδα, 中文 99%"),
        ("a\u00a0cat\u200b\ufeff", "a cat"),
        ("\u200b \n", ""),
    ],
)
def test_clean_text(text, expected):
    assert clean_text(text) == expected
    assert clean_text(clean_text(text)) == expected


def test_clean_text_is_idempotent_on_a_letter_that_grows():
    assert clean_text(clean_text("İSTANBUL")) == clean_text("İSTANBUL")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the bright cup left of the right hand", "the bright cup right of the left hand"),
        ("leftmost, right-hand, lefthand and righthand", "rightmost, left-hand, righthand and lefthand"),
        ("the left's hat; on RIGHT; Left", "the right's hat; on LEFT; Right"),
        ("topleft corner, far-right, a lefty", "topright corner, far-left, a righty"),
        ("right-handed batter", "left-handed batter"),
        ("2nd from the left, 12th row", "2nd from the right, 12th row"),
        ("upright leftover copyright brightly cleft", "upright leftover copyright brightly cleft"),
        ("a zebra ' s head , it isn ' t left", "a zebra ' s head , it isn ' t right"),
        ("man in the textured sweater, ready to swing", "man in the textured sweater, ready to swing"),
        ("the white clock", "the white clock"),
        ("dog left alone", "dog right alone"),  # the documented price of not knowing a word's sense
    ],
)
def test_swap_left_right(text, expected):
    assert swap_left_right(text) == expected
    assert swap_left_right(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "the sign that says stop",
        "a shirt with the words i love you",
        "the box with writing on it",
        "a board written in chalk",
        "bus number 521",
        "player 19",
        "the cup at 3 o'clock",
        "the cup at three o ' clock",
        "arrow turning clockwise",
        "arrow turning counter-clockwise",
        "in the eleven clock position",
        'the "glass" sign',
        "a van named ' service ' is parked",
        "WATCH THAT READS NOON",
        "the letters on the left",
    ],
)
def test_writing_and_clock_directions_forbid_the_mirror(text):
    assert swap_left_right(text) is None


def test_swapping_twice_gives_the_original():
    words = [
        "left",
        "right",
        "Leftmost",
        "RIGHT",
        "bright",
        "right-hand",
        "topleft",
        "dog",
        ",",
        "left's",
        "é",
        "-",
    ]
    shuffler = random.Random(0)
    for _ in range(300):
        text = " ".join(shuffler.choices(words, k=shuffler.randint(0, 9)))
        swapped = swap_left_right(text)
        assert swap_left_right(swapped) == text
        if "left" in text.split():
            assert swapped != text


@pytest.mark.parametrize(
    "text", [*COLORS, "Grey cats", "a reddish-brown dog", "the blonde girl", "darker", "oranges"]
)
def test_a_colour_is_named(text):
    assert names_color(text)


@pytest.mark.parametrize(
    "text", ["", "the tired man", "a greenhouse", "lightning", "the tank", "ride", "stands"]
)
def test_a_word_that_holds_a_colour_names_none(text):
    assert not names_color(text)


def test_tokens_are_open_clips():
    texts = [
        "a man",
        "",
        "the purée, 9 o'clock — façade",
        "Left  of the TREE",
        "word " * 100,
        "I'm &amp; you",
    ]
    assert torch.equal(tokenize(texts), open_clip.get_tokenizer("RN50")(texts))


def test_tokens_of_a_long_text_keep_the_end():
    tokens = tokenize(["dog " * 200, "dog"])
    assert tokens.shape == (2, CONTEXT_LENGTH)
    assert tokens[0, -1] == tokens.max() == 49407
    assert tokens.argmax(-1).tolist() == [CONTEXT_LENGTH - 1, 2]


def test_trimming_cuts_shared_padding_only():
    texts = ["a", "a brown dog near the tree"]
    full, trimmed = tokenize(texts), tokenize(texts, trim=True)
    assert trimmed.dtype == torch.int64
    assert trimmed.shape == (2, 8)
    assert torch.equal(full[:, :8], trimmed)
    assert (full[:, 8:] == 0).all()
    assert tokenize(["dog " * 200], trim=True).shape == (1, CONTEXT_LENGTH)


def test_no_texts_and_a_single_text():
    assert tokenize([]).shape == (0, CONTEXT_LENGTH)
    assert tokenize([], trim=True).shape == (0, 2)
    with pytest.raises(TypeError, match="list of texts"):
        tokenize("a man")


def text_features(clip, tokens):
    """CLIP's pooled text feature with positions and mask cut to the tokens' length."""
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ clip.text_projection


def test_trimmed_tokens_give_the_same_text_features(tmp_path):
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    file = tmp_path / "tiny-test-clip.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    torch.manual_seed(0)
    clip = open_clip.create_model("tiny-test-clip").eval()
    texts = ["a", "the brown dog left of the tree", "two people"]
    with torch.no_grad():
        expected = clip.encode_text(tokenize(texts))
        torch.testing.assert_close(text_features(clip, tokenize(texts)), expected)
        torch.testing.assert_close(text_features(clip, tokenize(texts, trim=True)), expected)
