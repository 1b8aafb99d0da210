from dataclasses import replace
from pathlib import Path

import pytest
from planted_defects import DEFECTS, spoiled

from segsmith.datasets import foreign_readers
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


LIBRARIES = {
    "voc2012": "torchvision",
    "coco": "pycocotools",
    "coco-stuff": "pycocotools",
    "hf": "datasets",
    "webdataset": "webdataset",
}


@pytest.mark.consumers
@pytest.mark.parametrize(("form", "library"), LIBRARIES.items())
def test_the_library_of_a_format_reads_the_same(made_up, form, library, monkeypatch):
    pytest.importorskip(library)
    root = made_up.folders[form]
    assert validate(root).also_read_by == ""  # a stranger's dataset is not shown to it
    assert validate(root, made_up.data).also_read_by == library
    reader = foreign_readers.find_reader(root, form.partition("-")[0].replace("2012", ""))

    def spoil(*args):
        first, *rest = reader.read(*args)
        yield (first[0], first[1], 1 - first[2])
        yield from rest[1:]

    forms = {name: replace(reader, read=spoil) for name in foreign_readers.READERS}
    monkeypatch.setattr(foreign_readers, "READERS", forms)
    problems = validate(root, made_up.data).problems
    assert {p.kind for p in problems} == {"other_reading"}
    assert len(problems) == 2  # another mask, and an image that is not read


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
