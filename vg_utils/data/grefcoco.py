"""gRefCOCO's references: a phrase may mean one object, several, or none (Liu, Ding and Jiang, 2023).

`grefs(PARTITION).json` is a list of references as RefCOCO's, but `ann_id` is a list, [-1] where nothing is
meant. Here a phrase has one box or none: those with one target and with none are read, those with several are
left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from vg_utils.data.examples import BadRecord, Report
from vg_utils.data.records import Record

NO_TARGET = -1
SEVERAL_TARGETS = "several targets"  # reason of a report


def by_targets(
    refs: Iterable[Record], split: str, source: str, report: Report
) -> tuple[list[Record], list[Record]]:
    """References to one object, of all splits, and the split's phrases that fit nothing.

    The latter have the form of `refer_files.read_absent`. Of this split the report counts what is left out:
    phrases with several targets, and those with none in an image without any other phrase.
    """
    single, absent = [], []
    for ref in refs:
        targets = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        targets = [target for target in targets if target != NO_TARGET]
        where = f"{source}, ref {ref['ref_id']}"
        if len(targets) == 1:
            single.append(dict(ref, ann_id=targets[0]))
        elif ref["split"] == split and targets:
            for _ in ref["sentences"]:
                report.add(BadRecord(SEVERAL_TARGETS, f"{where}: expected one target, got {len(targets)}"))
        elif ref["split"] == split:
            common = {"image_id": ref["image_id"], "split": split}
            absent += [sentence | common for sentence in ref["sentences"] if isinstance(sentence, dict)]
    spoken_of = {ref["image_id"] for ref in single if ref["split"] == split}
    for phrase in absent:
        if phrase["image_id"] not in spoken_of:
            message = f"{source}, image {phrase['image_id']}: expected a phrase with one target beside it"
            report.add(BadRecord("no target, in an image without other phrases", message))
    return single, [phrase for phrase in absent if phrase["image_id"] in spoken_of]
