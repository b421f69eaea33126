"""Words of captions: what people are called, where a noun phrase ends, what is left unsaid."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import cache

from vg_utils.data.phrases import lexicon


def listed(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


MALE = listed("businessman cowboy dude fisherman gentleman groom guy male man policeman")
FEMALE = listed("bride businesswoman female lady woman")
BOY, GIRL = listed("boy"), listed("girl")
CHILD = listed("baby boy child girl infant kid toddler")
MEN = listed("businessmen gentlemen guys males men policemen")
WOMEN = listed("females ladies women")
CHILDREN = listed("boys children girls kids")
ROLES = listed(  # people by what they do
    """
    adult athlete batter bicycler bicyclist biker boarder catcher chef cook cyclist driver hitter individual
    jockey motorcyclist officer passenger pedestrian performer person pitcher player rider skateboarder
    skater skier snowboarder soldier student surfer swimmer teenager tourist umpire waiter waitress worker
    """
)
PEOPLE = MALE | FEMALE | CHILD | ROLES
ENDS = listed(  # end the noun phrase that a caption starts with
    """
    , about above across after against along and are around as at before behind being below beside between
    by carries catches covered cuts docked does down dressed drives eats filled flies for from gets goes has
    her his hits hold holding holds in inside into is its jumps laying lays leans lies looks lying made
    makes moves near next of off on or out outside over parked performs playing plays poses prepares reaches
    rests ride rides riding runs seated sit sits sitting skateboards skis smiles stand standing stands
    stopped surfs swings takes talks that through throws to topped traveling travels tries under up uses
    using waits walks watches wearing wears where which while who with
    """
)
CUTS = listed(  # start something more that is told
    """
    , across against along and as at behind by down during for from in inside into near next on over that
    through to under up while who with
    """
)
NOT_ONE = listed(  # the caption is about several, or about the picture
    """
    all both bunch close couple crowd each four group half image many number one pair people photo picture
    row set several some stack three two view
    """
)
ADJECTIVES = listed(  # what a thing looks like, not what happens to it
    """
    antique baby beige big birthday black blue bright brown chocolate city colorful commuter dark decker
    dirty double empty flat fluffy furry glass gold golden gray green grey large leather light little long
    metal old open orange passenger pepperoni pink plastic purple red screen short silver small sports steam
    striped stuffed tall tan vintage white wooden yellow young
    """
)
COLORS = listed("black blue brown gray green grey orange pink purple red silver tan white yellow")
UNSAID = re.compile(  # sides that nothing proves, the picture itself, writing
    r"\b(left|right|background|foreground|distance|picture|photo|photograph|image|sign|says|saying"
    r"|reads|words?|writing)\b|[\"“”]|\d"
)
_HOLD, _RIDE, _SIT = lexicon.HELD, lexicon.RIDDEN + lexicon.BOARDS, lexicon.SEATS
VERBS = {  # a verb of captions: the things that it goes with, and the relation that it proves
    **dict.fromkeys(("holding", "holds", "carrying", "swinging", "swings", "carries"), (_HOLD, "holding")),
    **dict.fromkeys(("riding", "rides", "on"), (_RIDE, "riding")),
    **dict.fromkeys(("sitting", "sits", "seated"), (_SIT, "sitting on")),
    **dict.fromkeys(("wearing", "wears"), (lexicon.WORN, "wearing")),
    "with": (_HOLD + lexicon.WORN, "having"),
}
ARTICLES = listed("a an the")
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*|,")


OPENINGS = re.compile(  # what a caption starts with before it comes to the point
    r"^(?:there is|there's|there are|this is|here is|an? (?:close[- ]?up|photo|picture|image|view) of)\s+"
    r"(?=a|an|the|two|three|four|several|some\b)"
)


def words_of(caption: str) -> list[str]:
    """Words in lower case and commas.

    >>> words_of("There is a dog, asleep.")
    ['a', 'dog', ',', 'asleep']
    """
    return WORD.findall(OPENINGS.sub("", caption.lower().strip()))


@cache
def class_of(head: str) -> str:
    """The class that a head noun of a caption names; itself if it is no other name of a class."""
    return lexicon.PERSON if head in PEOPLE else lexicon.class_of_word(head) or head


def subject(words: list[str], categories: Container[str]) -> tuple[int, str] | None:
    """Where the noun phrase that a caption starts with ends, and its head's class; None if not one thing.

    >>> subject("a young man riding a wave".split(), {"person"})
    (3, 'person')
    """
    if not words:
        return None
    bare = words[0] not in ("a", "an", "the", "one", "this")  # "young man riding a wave"
    end = first = 0 if bare else 1
    while end < len(words) and (joins_colors(words, end) or not ends_noun(words[end], end)):
        end += 1
    noun_phrase = words[first:end]
    if not 1 <= len(noun_phrase) <= 5 or not (NOT_ONE | ARTICLES).isdisjoint(noun_phrase):
        return None
    if words[end : end + 1] in (["and"], ["of"], [","], ["or"]):
        return None
    for head in (" ".join(noun_phrase[-2:]), noun_phrase[-1]):
        category = class_of(head)
        if category in categories:
            return end, category
    return None


NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
PAIRS, GROUPS = listed("both couple pair"), listed("bunch crowd flock group herd number team")
MOST = 6  # more than these nobody tells apart


@cache
def class_of_plural(word: str) -> str | None:
    """The class that a plural names.

    >>> class_of_plural("zebras"), class_of_plural("men"), class_of_plural("zebra")
    ('zebra', 'person', None)
    """
    if word in MEN | WOMEN | CHILDREN or word in ("people", "persons", *(role + "s" for role in ROLES)):
        return lexicon.PERSON
    classes = (*lexicon.ANIMALS, *lexicon.VEHICLES, *lexicon.SEATS, "airplane")
    return next((c for c in classes for name in lexicon.names_of(c) if word == lexicon.plural(name)), None)


def plural_subject(words: list[str]) -> tuple[int, str, int, int] | None:
    """Where the plural noun phrase that a caption starts with ends, its class, how many at least and at most.

    >>> plural_subject("two brown horses standing in a field".split())
    (3, 'horse', 2, 2)
    """
    start, least, most = 0, 2, MOST
    if words[:1] and words[0] in NUMBERS:
        start, least, most = 1, NUMBERS[words[0]], NUMBERS[words[0]]
    elif words[:1] and words[0] in ("several", "some", "the", "many"):
        start = 1
    elif words[:1] == ["a"] and "of" in words[2:4]:
        start = words.index("of") + 1
        if words[start - 2] in PAIRS:
            least, most = 2, 2
        elif words[start - 2] in GROUPS:
            least = 3
        else:
            return None
    for end in range(start + 1, min(start + 4, len(words) + 1)):
        category = class_of_plural(words[end - 1])
        if category is not None:
            exact = least == most or not {words[end - 1]} & (MEN | WOMEN | CHILDREN)
            more = words[end : end + 1] in (["and"], ["of"], [","], ["or"])
            return (end, category, least, most) if exact and not more else None
        if ends_noun(words[end - 1], end - start):
            return None
    return None


def ends_noun(word: str, position: int) -> bool:
    """Whether a noun phrase ends before the word: a preposition, a verb, a participle."""
    return word in ENDS or (word.endswith("ing") and position > 1)


def joins_colors(words: list[str], k: int) -> bool:
    """Whether the word is the "and" of "a black and white dog"."""
    return (
        words[k] == "and" and words[k - 1] in COLORS and words[k + 1 : k + 2] != [] and words[k + 1] in COLORS
    )
