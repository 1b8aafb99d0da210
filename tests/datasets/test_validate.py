from pathlib import Path

import pytest
from planted_defects import DEFECTS, spoiled

from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.validate import KINDS, validate


@pytest.mark.parametrize("form", EXPORTS)
def test_no_alarm_on_a_clean_export(made_up, form):
    data, folders = made_up.data, made_up.folders
    found = validate(folders[form], data)
    assert found.problems == []
    assert form.startswith(found.format)
    assert found.classes == data.classes
    assert found.splits == {split: n for split, n in data.counts.items() if n}


@pytest.mark.parametrize("form", EXPORTS)
def test_a_dataset_may_be_named_by_a_relative_path(made_up, form, monkeypatch):
    folder = made_up.folders[form]
    monkeypatch.chdir(folder.parent)
    assert validate(Path(folder.name)).problems == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.form}: {d.name}")
def test_each_planted_defect_is_found(made_up, tmp_path, defect):
    data, folders = made_up.data, made_up.folders
    root = spoiled(folders[defect.form], tmp_path, defect)
    found = validate(root, data if defect.with_run else None)
    assert defect.kind in {p.kind for p in found.problems}
    assert {p.kind for p in found.problems} <= KINDS.keys()
    if defect.with_run:
        assert validate(root).problems == [] or defect.kind == "other_labels"


def test_there_are_at_least_25_defects_of_every_format():
    assert len({d.name for d in DEFECTS}) == len(DEFECTS) >= 25
    assert {d.form for d in DEFECTS} == {
        "voc",
        "coco",
        "yolo",
        "cvat",
        "webdataset",
        "hf",
        "fiftyone",
        "label-studio",
    }
