import json
import subprocess
import sys

import pytest

from tests.data.samples import small_set, write_picture, write_set
from vg_utils.data import DataError, Report, load_examples


def test_own_layout(tmp_path):
    root = write_set(tmp_path, *small_set())
    assert load_examples(root, "train")[0].image_id == 7
    assert load_examples(root / "annotations", "train", require_images=False)[0].image_id == 7
    with pytest.raises(DataError, match=r"refs\(google\)\.p"):
        load_examples(root, "train", partition="google")


def test_options_are_passed_on(tmp_path):
    root = write_set(tmp_path, *small_set())
    for picture in (root / "images").iterdir():
        picture.unlink()
    report = Report()
    assert load_examples(root, "train", strict=False, report=report) == []
    assert report.total == 1
    assert len(load_examples(root, "train", require_images=False)) == 1


def test_nothing_readable_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"val\.jsonl, .*instances\.json.*parquet.*found notes\.txt"):
        load_examples(tmp_path, "val")
    with pytest.raises(DataError, match="found no such folder"):
        load_examples(tmp_path / "none", "val")


def test_importing_the_package_is_light():
    code = "import sys, vg_utils.data; assert not {'torch', 'datasets', 'requests'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_report_what_is_to_be_known_is_a_warning(tmp_path):
    write_picture(tmp_path / "a.png", (64, 48))
    good = {"image": "a.png", "expressions": [{"text": "the mug", "box_xyxy": [1, 2, 30, 40]}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(good))
    with pytest.warns(UserWarning, match=r"own\.jsonl, split val: every split is all of these 1 images"):
        load_examples(tmp_path / "own.jsonl", "val")
