"""The whole pipeline on real photographs with real phrases, where they are at hand (they are not in git)."""

import pytest

from experiments.overfit import overfit
from tests.data.samples import PHOTOS, needs_photos
from vg_utils.config import set_fields
from vg_utils.data import load_examples
from vg_utils.presets import preset

pytestmark = needs_photos


@pytest.mark.slow
def test_full_size_model_overfits_sixteen_photographs(tmp_path):
    config = set_fields(
        preset("refcocog"),
        data__root=str(PHOTOS),
        data__limit_images=16,
        data__workers=0,
        model__clip_hrnet__dropout=0.0,
        train__epochs=100,
        train__lr=1e-3,
        train__similarity_images=0,
    )
    assert overfit(config, tmp_path) > 0.8


def test_every_split_is_read_and_counted():
    splits = {split: load_examples(PHOTOS, split) for split in ("train", "val", "test")}
    refs = {name: {s.ref_id for e in examples for s in e.expressions} for name, examples in splits.items()}
    assert {name: len(ids) for name, ids in refs.items()} == {"train": 43, "val": 9, "test": 13}
