"""Records a second that the readers give, against parsing their files and looking at each image's header.

    python -m vg_utils benchmark reading [--lines 200000 --sentences 400000] [--against CHECKOUT]

Own data in JSON lines with an image each, and RefCOCOg's layout. The baseline only parses: what more the
readers take is for checking every record and building examples; they work in a process of their own. With
`--against` the same data are also read by the `vg_utils` of another checkout, and that is the baseline.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from benchmarks._timing import Comparison, Report, finish, in_turns, options, require_equal
from vg_utils.data.refer_files import write_refer

ROOT = Path(__file__).parents[1]
PARSED, READ = "parsed, image headers by Pillow", "load_examples"
OBJECTS, REFS, SENTENCES = 7, 2, 2  # of an image; sentences of each of its refs
SIZE_WH = 640, 480
TEXT = "the man in a red shirt left of the bus, number"
READER = """
import sys
from vg_utils.data import load_examples
for folder in sys.stdin:
    examples = load_examples(folder.rstrip("\\n"), "train", require_images=False)
    print(sum(len(example.expressions) for example in examples), flush=True)
"""


def write_lines(root: Path, lines: int) -> Path:
    """Own data: a line and a small JPEG file for each image, two expressions each."""
    (root / "images").mkdir(parents=True)
    Image.new("RGB", SIZE_WH).save(root / "0.jpg")
    content, rows = (root / "0.jpg").read_bytes(), []
    for number in range(lines):
        (root / "images" / f"{number}.jpg").write_bytes(content)
        boxes = [1, 2, 30, 40], [5, 6, 30.5, 40]
        expressions = [{"text": f"{TEXT} {number}", "box_xyxy": box, "category": "man"} for box in boxes]
        rows.append(json.dumps({"image": f"images/{number}.jpg", "expressions": expressions}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    return root


def write_references(root: Path, sentences: int) -> Path:
    """RefCOCOg's layout, without the images."""
    count = max(1, sentences // (REFS * SENTENCES))
    annotations = [
        {"id": i, "image_id": i // OBJECTS, "bbox": [10.5, 20.25, 100.1, 200.5], "category_id": 1 + i % 3}
        for i in range(count * OBJECTS)
    ]
    refs = []
    for number in range(count * REFS):
        image_id, k = divmod(number, REFS)
        text = f"{TEXT} {number}"
        said = [
            {"sent_id": number * SENTENCES + j, "sent": text, "raw": text, "tokens": text.split()}
            for j in range(SENTENCES)
        ]
        ids = {"ref_id": number, "ann_id": image_id * OBJECTS + k, "image_id": image_id, "category_id": 1}
        refs.append(ids | {"split": "train", "sentences": said, "sent_ids": [s["sent_id"] for s in said]})
    width, height = SIZE_WH
    instances = {
        "images": [{"id": i, "width": width, "height": height} for i in range(count)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"thing {i}"} for i in (1, 2, 3)],
    }
    write_refer(root, "umd", instances, refs)
    return root


def parse_lines(root: Path) -> int:
    """Number of expressions."""
    expressions = 0
    for line in (root / "train.jsonl").read_text().split("\n"):
        if line:
            record = json.loads(line)
            with Image.open(root / record["image"]) as image:
                assert image.size == SIZE_WH
            expressions += len(record["expressions"])
    return expressions


def parse_references(root: Path) -> int:
    """Number of expressions."""
    json.loads((root / "annotations" / "instances.json").read_bytes())
    refs = pickle.loads((root / "annotations" / "refs(umd).p").read_bytes())  # written here
    return sum(len(ref["sentences"]) for ref in refs)


class Reader:
    """Reads with the code of a checkout, in a process that stays, so that its imports do not count."""

    def __init__(self, checkout: str | Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(checkout).resolve())}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER], cwd=checkout, env=environment, **pipes
        )

    def __call__(self, root: Path) -> int:
        """Number of expressions."""
        self._process.stdin.write(f"{root}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a checkout could not read {root}; what it said stands above")
        return int(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(lines: int, sentences: int, rounds: int, against: str | None, folder: Path) -> Report:
    """Time each reader on data made in the folder."""
    sets = {
        f"{lines} JSON lines": (write_lines(folder / "lines", lines), parse_lines, lines, "lines/s"),
        f"{sentences} sentences in RefCOCOg's layout": (
            write_references(folder / "refs", sentences),
            parse_references,
            sentences,
            "sentences/s",
        ),
    }
    readers = {f"{READ} of {against}": Reader(against)} if against else {}
    own = Reader(ROOT)
    comparisons, checks = [], {}
    for title, (root, parse, work, unit) in sets.items():
        variants: dict[str, Callable[[Path], int]] = {**readers, PARSED: parse, READ: own}
        counts = [do(root) for do in variants.values()]
        require_equal(title, counts, counts[:1] * len(counts))
        seconds = in_turns({name: lambda do=do, root=root: do(root) for name, do in variants.items()}, rounds)
        comparisons.append(Comparison(title, next(iter(variants)), seconds, work, unit))
        checks[f"{title}: expressions of each variant"] = counts[0]
    for reader in (*readers.values(), own):
        reader.close()
    return Report("reading", comparisons, checks)


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("reading", "Records/s of the readers, against parsing alone or another checkout.")
    parser.add_argument("--lines", type=int, default=5000, help="JSON lines, an image each")
    parser.add_argument("--sentences", type=int, default=20000, help="sentences in RefCOCOg's layout")
    parser.add_argument("--against", metavar="CHECKOUT", help="read by the code there as well: the baseline")
    given = parser.parse_args(arguments)
    lines, sentences = (20, 40) if given.tiny else (given.lines, given.sentences)
    rounds = given.rounds or (1 if given.tiny else 3)
    with tempfile.TemporaryDirectory() as folder:
        return finish(measure(lines, sentences, rounds, given.against, Path(folder)), given.json)


if __name__ == "__main__":
    main()
