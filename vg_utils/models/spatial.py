"""What a phrase says about place and size, read by rule, and the factor it gives each proposal.

CLIP hardly knows left from right (Subramanian et al. 2022, section 3.2), so `detector-clip` reads such words
off the phrase and compares the boxes, as their ReCLIP does (section 4.2), but with a few patterns for English
instead of a dependency parser.

>>> parse_phrase("the small dog lying to the left of the sofa")
Parsed(head='the small dog', relations=(Relation(kind='left', anchor='the sofa'),))
>>> parse_phrase("the man in the tank top on the right")
Parsed(head='the man', relations=(Relation(kind='right', anchor=None),))
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area

from vg_utils.boxes import to_cxcywh

KINDS = ("left", "right", "top", "bottom", "middle", "largest", "smallest")


class Relation(NamedTuple):
    """How the thing meant compares with others.

    Attributes:
        kind: one of `KINDS`.
        anchor: noun phrase of what it is compared with ("left of the sofa"); None: with all others of its
            kind ("the left dog").
    """

    kind: str
    anchor: str | None = None


class Parsed(NamedTuple):
    """What the rules find in a phrase: the noun phrase of the thing meant, and its relations."""

    head: str
    relations: tuple[Relation, ...]


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[,.;:]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words("a an the this that one two three some his her its their my your")
# Words that end a noun phrase: what follows says where the thing is, what it does or has.
_ENDS = _words(
    """, . ; : that which who whom whose where with without in on at by near next to beside besides behind
    under below beneath underneath above over across along against around inside outside between among from
    for into onto off through toward towards up down and or but as than is are was has have had being facing
    not closest nearest furthest farthest further worn held dressed seen"""
)
_ING_NOUNS = _words(
    """building buildings painting ceiling string king ring wing earring railing clothing thing things pudding
    icing awning swing sibling wedding morning evening serving topping stuffing living dining wrapping"""
)
# Exact words, unlike those of `names_color`: "ice cream and a spoon" joins no colours.
_COLORS = _words(
    """black white gray grey red green blue yellow brown orange pink purple tan beige gold golden silver dark
    light"""
)
_COMPARED = {
    "of": _words("left right top side"),
    "than": _words("larger bigger smaller"),
}  # end it before these

_INTRODUCTION = re.compile(r"^(?:there|this|it|that) (?:is|are|was) ")  # "there is a girl" means the girl
# "the second from the left" is not the leftmost
_ORDINAL = re.compile(r"\b(?:second|third|fourth|fifth|\d+(?:nd|rd|th))\b.{0,25}\bfrom\b")
_OTHER_SELF = re.compile(r"(?:it|its|him|his|her|them|their|which|each)\b")  # an anchor that names nothing
_ITSELF = (
    r"(?:the |this )?"
    r"(?:picture|pic|photo|photograph|image|frame|screen|shot|scene|view|group|row|line|bunch)\b"
)
_SIDE = r"(?: ?hand)?(?: (?:side|end|half|part|edge))?"
_BODY = r"(?:hand|arm|leg|foot|eye|ear|paw|shoulder|wrist|knee|thigh|cheek|wing)\b(?! side)"
_NOT_BEFORE = "".join(  # whose left it is, or where it looks: not where it is
    f"(?<!{word} )" for word in ("facing the", *_words("his her its their my your facing turned looking"))
)
_NOT_AFTER = (
    r"(?:next|behind|in front|above|below|beneath|underneath|beside|under|by"
    r"|on top|there|over|alone|out|up|of)\b"
)
_SHELF = r"(?:shelf|row|bunk|bed|layer|rack|step|slice|half|part|side|edge|end|corner|left|right|one|most)"


def _side(word: str) -> str:
    place = rf"{_NOT_BEFORE}\b{word}(?: ?most)?{_SIDE}\b"
    return rf"{place}(?:(?= of {_ITSELF})|(?! {_BODY})(?! {_NOT_AFTER}))"


# Comparisons with something else: "left of", "above", "larger than", and then its noun phrase.
_ANCHORED = {
    kind: re.compile(rf"\b{words} (?!{_ITSELF})")
    for kind, words in {
        "left": f"left{_SIDE} of",
        "right": f"right{_SIDE} of",
        "top": "(?:above|on top of)",
        "bottom": "(?:below|beneath|underneath)",
        "largest": "(?:larger|bigger) than",
        "smallest": "smaller than",
    }.items()
}
# Comparisons with the others of its kind.
_ALONE = {
    kind: re.compile(words)
    for kind, words in {
        "left": _side("left"),
        "right": _side("right"),
        "top": r"\b(?:top ?most|uppermost|upper|highest)\b"
        rf"|\btop(?= {_SHELF}\b)|\btop(?= of {_ITSELF})"
        r"|\b(?:on|at|in|near|to) (?:the )?(?:very )?top\b(?! of)",
        "bottom": rf"\b(?:bottom ?most|lowest|lower|bottom)\b(?:(?! of)|(?= of {_ITSELF}))",
        "middle": rf"\b(?:middle(?! age)|center|centre|central)\b(?:(?! of)|(?= of {_ITSELF}))",
        "largest": r"\b(?:largest|biggest|larger|bigger)\b(?! than)",
        "smallest": r"\b(?:smallest|tiniest|smaller)\b(?! than)",
    }.items()
}


def parse_phrase(text: str) -> Parsed:
    """Head noun phrase and relations of a cleaned, lower-case phrase.

    A size is taken only from the head noun phrase ("a dog beside a larger one" says nothing of its own size),
    a place from anywhere before what the phrase compares the thing with.
    """
    text = _INTRODUCTION.sub("", " ".join(text.replace("-", " ").split()))
    head, relations, end = head_noun_phrase(text), [], len(text)
    anchored = [(match, kind) for kind, pattern in _ANCHORED.items() if (match := pattern.search(text))]
    if anchored:
        match, kind = min(anchored, key=lambda found: found[0].start())
        end = match.start()
        if not _OTHER_SELF.match(text, match.end()):
            relations.append(Relation(kind, head_noun_phrase(text[match.end() :])))
    for kind, pattern in _ALONE.items():
        if kind in ("left", "right") and _ORDINAL.search(text):
            continue
        match = pattern.search(head if kind in ("largest", "smallest") else text)
        if match and match.start() < end and not (kind == "top" and " with " in text[: match.start()]):
            relations.append(Relation(kind))
    return Parsed(head, tuple(relations))


def head_noun_phrase(text: str) -> str:
    """The words up to the first that ends a noun phrase; the whole text where that leaves nothing.

    >>> head_noun_phrase("a sleeping cat on a chair")
    'a sleeping cat'
    >>> head_noun_phrase("piece of cake being cut by the man")
    'piece of cake'
    """
    words = _WORD.findall(text)
    kept: list[str] = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        content = any(w not in _DETERMINERS for w in kept)
        participle = word.endswith("ing") and len(word) > 4 and word not in _ING_NOUNS
        compared = word in _COMPARED.get(following, ())
        joins = word == "and" and kept and kept[-1] in _COLORS  # "a black and white dog"
        if content and not joins and (word in _ENDS or participle or compared):
            break
        if word in _ENDS and not kept:  # "on the left , a dog" starts with a place
            continue
        kept.append(word)
    return " ".join(kept) if any(w not in _DETERMINERS for w in kept) else text


def comparisons(kind: str, boxes_xyxy: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Whether box i is more left (right, higher, ...) than box j: bool (n, n) of boxes (n, 4).

    Centres are compared for places, areas for sizes; "middle" is nearer to the middle of the image, in
    shares of its sides.
    """
    centre_x, centre_y = to_cxcywh(boxes_xyxy)[:, :2].unbind(1)  # (n,) each
    if kind == "middle":
        width, height = size_wh
        value = torch.hypot(centre_x / width - 0.5, centre_y / height - 0.5)
    elif kind in ("left", "right"):
        value = centre_x
    elif kind in ("top", "bottom"):
        value = centre_y
    else:
        value = box_area(boxes_xyxy)
    if kind in ("right", "bottom", "largest"):
        value = -value
    return value[:, None] < value[None, :]


def log_factor(
    kind: str, boxes_xyxy: Tensor, size_wh: tuple[int, int], weights: Tensor, floor: float
) -> Tensor:
    """Logarithm of each proposal's factor for one relation: (n,).

    The factor of proposal i is `floor + sum_j w_j [i r j]`: the probability that what it is compared with,
    drawn from the weights w (which sum to 1), stands on the other side of relation r. Times CLIP's
    probability of i, and with floor 0, that is ReCLIP's rule for relations (w from the anchor's noun phrase)
    and for superlatives (w from the head noun phrase). The floor is ours: one certain dog is beaten only by
    proposals that CLIP finds at least about `floor` times as probable, not by any wild guess that happens to
    be left of it.
    """
    beaten = comparisons(kind, boxes_xyxy, size_wh).float() @ weights  # (n, n) @ (n,)
    return (floor + beaten).log()
