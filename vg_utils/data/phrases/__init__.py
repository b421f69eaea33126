"""Phrases made from boxes: any detection data set becomes a grounding data set.

`make_phrases` is the way in. `lexicon` has the words, `objects`, `colors` and `relations` what a picture shows,
`meaning` what a phrase means, `families` what could be said, `wording` how, `captions` what people wrote, `absent`
what is not there, `making` puts them together for one picture and `writing` for a data set.
"""

from vg_utils.data.phrases.writing import Summary, make_phrases

__all__ = ["Summary", "make_phrases"]
