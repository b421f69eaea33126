"""Speed, measured as ratios against a stated baseline: `python -m vg_utils benchmark [NAME] [OPTIONS]`.

A benchmark is a module here with `main(arguments)`, named below. It checks that its variants do the same
work (the same pairs, the same boxes) and times them in turns. Files with an underscore are shared.
"""

BENCHMARKS = ("decoding", "grouping", "caching", "grounding", "answering")
BENCHMARKS += ("training", "together", "proposals", "reading")
