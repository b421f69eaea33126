"""Sentences: cleaning, and the left-right swap that goes with a mirrored image.

>>> clean_text("  The man on\\tthe LEFT ")
'the man on the left'
>>> swap_left_right("the bright car left of the leftmost tree")
'the bright car right of the rightmost tree'
>>> swap_left_right("the sign that says stop") is None
True
>>> names_color("the man in a navy-blue suit"), names_color("the man to the right of the blueprint")
(True, False)
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["clean_text", "names_color", "swap_left_right"]


# Invisible characters that `str.split` does not take for spaces; people paste them without knowing.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))

# `[^\W\d_]` is any letter, of any alphabet. Bounded by it, "bright", "upright", "copyright" and "leftover"
# hold no direction, while "left-hand" and "left's" do. The parts around it make the compounds that
# people write as one word.
_DIRECTION = re.compile(
    r"(?<![^\W\d_])(the|top|bottom|upper|lower|far|front|back|mid|middle|center|centre)?"
    r"(left|right)"
    r"(most|handed|hander|handside|hand|side|wards?|er|est|ish|y)?(?![^\W\d_])",
    re.IGNORECASE,
)
_OPPOSITE = {"left": "right", "right": "left"}

# What a mirrored image would show wrongly, whatever the phrase's directions: writing, senses of rotation.
_NOT_MIRRORED = re.compile(
    r"\b(?:words?|letter(?:s|ed|ing)?|texts?|writ(?:e|es|ing|ten)|wrote|says?|saying|reads?|reading"
    r"|spell(?:s|ed|ing)?|numbers?|numbered|numerals?|digits?|initials|logos?|labell?ed|caption(?:s|ed)?|inscri(?:bed|ption)"
    r"|(?:anti|counter)?[- ]?clockwise|o ?['’]? ?clock|clock (?:position|direction)s?)\b"
    r"|\d(?!\d*(?:st|nd|rd|th)\b)"  # any figure, but "2nd from the left" is an order and not writing
    r'|["“”«»„]'
    # A quotation in single quotes; RefCOCOg puts spaces at apostrophes, so "zebra ' s", "isn ' t" are not.
    r"|(?:^|(?<=\s))['‘`](?! ?(?:s|t|m|d|re|ve|ll)\b)",
    re.IGNORECASE,
)

# What an image in other colours would show wrongly; things that go by their colour ("an orange") as well.
_COLOR = re.compile(
    r"\b(?:colou?r(?:s|ed|ful)?|black|white|gr[ae]y|red|green|blue|yellow|brown|orange|pink|purple|violet|tan|beige|cream"
    r"|gold(?:en)?|silver|bronze|copper|cyan|turquoise|teal|aqua|navy|maroon|burgundy|crimson|magenta|lavender|khaki"
    r"|blond|brunette|ginger|redhead|dark|light|pale|bright)(?:e|s|y|er|est|d?ish)?\b",
    re.IGNORECASE,
)


def clean_text(text: str) -> str:
    """The sentence in lower case, in Unicode's composed form (NFC), with single spaces and none at the ends.

    Letters of every alphabet, digits and punctuation stay. Cleaning twice changes nothing more. The result is
    empty if nothing visible was there.
    """
    if text.isascii():  # most are: nothing to compose or to take out
        return " ".join(text.lower().split())
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE)).lower()
    # Lower-casing can decompose again (the Turkish dotted capital I does).
    return " ".join(unicodedata.normalize("NFC", text).split())


def swap_left_right(text: str) -> str | None:
    """The phrase for the mirrored image, or None where the image must not be mirrored.

    Whole words are swapped: left, leftmost, left-hand, lefthand, left's, topleft, lefty and their opposites,
    in lower case, Capitalised or UPPER CASE (any other mixture becomes lower case). Applied twice it gives
    the original. It cannot know a word's sense: "left alone" becomes "right alone" and "right behind" becomes
    "left behind". That noise is rare next to the directions and only ever reaches the training phrases.

    Returns:
        The swapped text (the text itself if it names no direction); None if it mentions writing (words,
        letters, numbers, digits, quotations, "says", "reads" ...) or a sense of rotation (clockwise, three
        o'clock), which a mirrored image shows wrongly. A needless None costs a flip, a missing one teaches
        something false, so "a man reading" is None too.
    """
    if _NOT_MIRRORED.search(text):
        return None
    return _DIRECTION.sub(_swap_match, text)


def names_color(text: str) -> bool:
    """Whether the phrase may not fit any more once its image is shown in other colours.

    It cannot know a word's sense: "a light load" counts as well. That only keeps a phrase out of an image.
    """
    return _COLOR.search(text) is not None


def _swap_match(match: re.Match[str]) -> str:
    before, word, after = match.groups(default="")
    opposite = _OPPOSITE[word.lower()]
    if word.isupper():
        opposite = opposite.upper()
    elif word.istitle():
        opposite = opposite.capitalize()
    return before + opposite + after
