"""Whether presence tells what is in a photograph.

    python -m experiments.photo_presence --people DIR --seen experiments/photo_categories.json

Of every image of a folder in RefCOCOg's layout, "the CATEGORY" is asked for the categories of the data set:
those that are there, and those that are not. Where the folder has the boxes of referred objects alone, as of
the 58 photographs of the page, a category without a box may be there all the same. So `--seen` adds, for each
image, what is plainly there besides, and what perhaps is (small, cut, dark, or hard to name), by eye; the
latter is not asked. Nor is what the phrases about the image name, or what is taken for something that is
there (`data.phrases.lexicon` says what).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from experiments.photos import people_of
from vg_utils.data import DataError, GroundingExample
from vg_utils.data.phrases import lexicon
from vg_utils.data.phrases.captions import mentions
from vg_utils.data.records import LIST, check, read_json
from vg_utils.data.refer_files import annotation_folder, read_instances
from vg_utils.evaluation.confidence import auroc, auroc_ci, target_accuracy
from vg_utils.files import check_file, write_atomically
from vg_utils.models.checkpoints import DEFAULT_CHECKPOINT, CheckpointError
from vg_utils.predictor import Grounder

RESULTS = Path(__file__).with_suffix(".json")
LISTED = 20  # categories that are not there and that the model is surest of
PEOPLE_WORDS = {word for kind in lexicon.KINDS_OF_WORD for word in (kind, lexicon.plural(kind))}


def questions(
    examples: Iterable[GroundingExample], categories: Sequence[str], seen: dict[str, dict] | None = None
) -> pd.DataFrame:
    """What to ask: a line for each image and category, `image_id, category, there`, sorted.

    Args:
        examples: their boxes say what is there.
        categories: of the data set.
        seen: by image id, as text: `there` and `perhaps`, lists of categories without a box.
    """
    there, said = defaultdict(set), defaultdict(set)
    for example in examples:
        there[example.image_id].update(example.object_categories)
        said[example.image_id] |= mentions([e.text.split() for e in example.expressions])
    perhaps = defaultdict(set)
    for image_id, found in (seen or {}).items():
        there[int(image_id)].update(found["there"])
        perhaps[int(image_id)].update(found["perhaps"])
    asked = [
        (image_id, category, category in there[image_id])
        for image_id in sorted(said)
        for category in categories
        if category in there[image_id]
        or (category not in perhaps[image_id] and is_missing(category, there[image_id], said[image_id]))
    ]
    return pd.DataFrame(asked, columns=["image_id", "category", "there"])


def read_seen(path: Path) -> dict[str, dict]:
    """The file of `--seen`. Raises DataError where it is another."""
    seen = read_json(path, "what was seen in each image, as JSON")
    check(seen, {}, str(path))
    for image_id, found in seen.items():
        check(found, {"there": LIST, "perhaps": LIST}, f"{path}, image {image_id}")
    return seen


def is_missing(category: str, there: set[str], said: set[str]) -> bool:
    """Whether neither the category nor what is taken for it is there, or named in these words."""
    words = lexicon.mentions_of(category) | (PEOPLE_WORDS if category == lexicon.PERSON else set())
    return lexicon.confused_with(category).isdisjoint(there) and words.isdisjoint(said)


def ask(grounder: Grounder, examples: Iterable[GroundingExample], asked: pd.DataFrame) -> pd.DataFrame:
    """The questions with the model's `presence`."""
    images = {example.image_id: example.image for example in examples}
    parts = []
    for image_id, part in asked.groupby("image_id"):
        answers = grounder.ground(
            [f"the {name}" for name in part["category"]], grounder.encode(images[image_id])
        )
        parts.append(part.assign(presence=[answer.presence for answer in answers]))
    return pd.concat(parts, ignore_index=True)


def results_of(answers: pd.DataFrame) -> dict:
    """The numbers of the page, ready for JSON, from the lines of `ask`."""
    there, missing = answers[answers["there"]], answers[~answers["there"]]
    surest = missing.nlargest(LISTED, "presence")
    low, high = auroc_ci(there["presence"], there["image_id"], missing["presence"], missing["image_id"])
    return {
        "n_images": int(answers["image_id"].nunique()),
        "n_there": len(there),
        "n_missing": len(missing),
        "presence_auroc": auroc(there["presence"], missing["presence"]),
        "presence_auroc_ci95": [low, high],
        **target_accuracy(there, missing),
        "surest_of_missing": surest[["image_id", "category", "presence"]].round(3).to_dict("records"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, print and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True, help="folder in RefCOCOg's layout")
    parser.add_argument("--seen", type=Path, help="file of what is there without a box, by eye")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        check_file(options.out)
        examples = people_of(options.people)
        instances = read_instances(annotation_folder(options.people) / "instances.json")
        seen = read_seen(options.seen) if options.seen else {}
        grounder = Grounder.load(options.checkpoint)
    except (DataError, CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    categories = [category["name"] for category in instances["categories"]]
    found = results_of(ask(grounder, examples, questions(examples, categories, seen)))
    counted = [expression.distractors for example in examples for expression in example.expressions]
    about = {
        "checkpoint": options.checkpoint,
        "origin": grounder.origin,
        "all_objects_have_boxes": None not in counted,
        "n_seen_without_box": sum(len(found["there"]) for found in seen.values()),
    }
    found = about | found | {"seconds": round(time.perf_counter() - started, 1)}
    write_atomically(options.out, (json.dumps(found, indent=2) + "\n").encode())
    print("\n".join(f"{key}: {value}" for key, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
