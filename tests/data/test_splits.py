from vg_utils.data.splits import divide, split_of


def test_names_decide_and_others_change_nothing():
    names = [f"{number}.jpg" for number in range(2000)]
    splits = divide(names, held_out=10)
    assert splits == {name: split_of(name, 10) for name in names}
    assert all(150 < list(splits.values()).count(split) < 250 for split in ("val", "test"))
    assert divide(reversed(names[:500])).items() <= splits.items()


def test_each_split_has_one_of_three():
    for first in range(50):
        assert set(divide(f"{first + k}.png" for k in range(3)).values()) == {"train", "val", "test"}
    assert set(divide(["a.png"]).values()) <= {"train", "val", "test"}
