"""Phrases made from boxes: any detection data set becomes a grounding data set.

`make_phrases` is the way in. `reading` checks what comes; `objects`, `colors` and `relations` say what a
image shows; `families` proposes what could be said with the words of `lexicon`, `meaning` proves it on the
boxes, `wording` says it in the ways of `ways`; `captions`, `caption_words`, `told` and `people` take what
people wrote; `absent` says what is not there; `making` puts all together for one image and `writing` for a
data set.
"""

from vg_utils.data.phrases.writing import Summary, make_phrases

__all__ = ["Summary", "make_phrases"]
