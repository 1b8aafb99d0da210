"""Every export of one run, read with the libraries that people use: counts, classes, splits and pixels.

The first disagreement ends it with an `AssertionError`.
`make consumers` installs them into an environment of their own and prints the table of docs/exports.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segsmith.datasets.export import export_dataset
from segsmith.datasets.instances import find_instances, without_specks
from segsmith.datasets.run_dataset import RunDataset, collect
from segsmith.testing import made_up_run

IMAGES = 24
SIZE = 64


@dataclass(frozen=True)
class Case:
    """An export and the library that reads it."""

    form: str
    library: str
    check: Callable[[Path, RunDataset], str]


def truth(data: RunDataset) -> dict[str, np.ndarray]:
    return {record.id: record.load().label_map for record in data.records}


def objects(data: RunDataset, split: str) -> int:
    return sum(len(find_instances(r.load().label_map).objects) for r in data.records if r.split == split)


def same(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise AssertionError(f"{what}: {found!r} instead of {expected!r}")


def same_pixels(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    if not np.array_equal(found, expected):
        raise AssertionError(f"{name}: {int((found != expected).sum())} pixels differ")


def torchvision_voc(root: Path, data: RunDataset) -> str:
    from torchvision.datasets import VOCSegmentation

    maps = truth(data)
    for split, year in (("train", "2012"), ("val", "2012"), ("test", "2007")):
        found = VOCSegmentation(str(root), year=year, image_set=split)
        same(len(found), data.counts[split], split)
        for path, (_, mask) in zip(found.images, found, strict=True):
            same_pixels(np.asarray(mask), maps[Path(path).stem], path)
    return "images, splits and every mask pixel"


def supervision_voc(root: Path, data: RunDataset) -> str:
    import supervision

    found = supervision.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    same(len(found), len(data.records), "images")
    same(set(found.classes), set(data.classes), "classes")
    boxes = sum(len(detections) for _, _, detections in found)
    same(boxes, sum(objects(data, split) for split in data.counts), "boxes")
    return f"images, classes and {boxes} boxes"


def datumaro_voc(root: Path, data: RunDataset) -> str:
    import datumaro

    found = datumaro.Dataset.import_from(str(root), "voc_segmentation")
    names = [label.name for label in found.categories()[datumaro.AnnotationType.label]]
    same(names, ["background", *data.classes, "ignored"], "classes")
    return datumaro_pixels(found, data)


def datumaro_pixels(found, data: RunDataset) -> str:
    from datumaro import AnnotationType

    maps, records = truth(data), {r.id: r for r in data.records}
    names = [label.name for label in found.categories()[AnnotationType.label]]
    count = 0
    for item in found:
        if item.subset == "trainval":  # VOC lists these images a second time
            continue
        record, count = records[item.id], count + 1
        same(item.subset, record.split, f"split of {item.id}")
        painted = np.zeros_like(maps[item.id])
        for annotation in item.annotations:
            if annotation.type == AnnotationType.mask:
                name = names[annotation.label]
                index = {"background": 0, "ignored": 255}.get(name) or (
                    data.classes.index(name) + 1 if name in data.classes else 0
                )
                if name != "background":
                    painted[annotation.image.astype(bool)] = index
        expected = without_specks(maps[item.id])
        known = expected != 255
        same_pixels(painted[known], expected[known], item.id)
    same(count, len(data.records), "images")
    return "images, classes, splits and every known mask pixel"


def pycocotools_coco(root: Path, data: RunDataset) -> str:
    from pycocotools.coco import COCO

    maps = truth(data)
    total = 0
    for split, count in data.counts.items():
        (path,) = (root / "annotations").glob(f"*_{split}.json")
        coco = COCO(str(path))
        same(len(coco.imgs), count, split)
        same([c["name"] for c in coco.loadCats(coco.getCatIds())], list(data.classes), "classes")
        for image in coco.imgs.values():
            expected = maps[Path(image["file_name"]).stem]
            expected = expected if path.name.startswith("stuff") else without_specks(expected)
            painted = np.zeros_like(expected)
            for annotation in coco.imgToAnns[image["id"]]:
                painted[coco.annToMask(annotation) > 0] = (
                    255 if annotation["iscrowd"] else annotation["category_id"]
                )
                total += not annotation["iscrowd"]
            same_pixels(painted, expected, image["file_name"])
    return f"images, classes, splits, every pixel of {total} annotations"


def supervision_coco(root: Path, data: RunDataset) -> str:
    import supervision

    total = 0
    for split, count in data.counts.items():
        found = supervision.DetectionDataset.from_coco(
            str(root / "images" / split), str(root / f"annotations/instances_{split}.json"), force_masks=True
        )
        same(len(found), count, split)
        same(list(found.classes), list(data.classes), "classes")
        total += sum(len(d) for _, _, d in found)
    return f"images, classes, {total} masks (iscrowd regions among them)"


def datumaro_coco(root: Path, data: RunDataset) -> str:
    import datumaro

    found = datumaro.Dataset.import_from(str(root), "coco_instances")
    names = [label.name for label in found.categories()[datumaro.AnnotationType.label]]
    same([n for n in names if n != "background"], list(data.classes), "classes")
    same(len(list(found)), len(data.records), "images")
    polygons = {
        (item.id, a.id)
        for item in found
        for a in item.annotations
        if a.type == datumaro.AnnotationType.polygon and not a.attributes.get("is_crowd")
    }
    return f"images, classes, splits, polygons of {len(polygons)} objects"


def label_studio_coco(root: Path, data: RunDataset) -> str:
    from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tasks.json"
        convert_coco_to_ls(str(root / "annotations/instances_train.json"), str(out))
        same(len(json.loads(out.read_text())), data.counts["train"], "tasks")
    return "tasks with polygons"


def supervision_yolo(root: Path, data: RunDataset) -> str:
    import supervision

    maps = truth(data)
    total, errors = 0, []
    for split in data.counts:
        found = supervision.DetectionDataset.from_yolo(
            str(root / "images" / split),
            str(root / "labels" / split),
            str(root / "segment.yaml"),
            force_masks=True,
        )
        same(list(found.classes), list(data.classes), "classes")
        for path, _, detections in found:
            total += len(detections)
            expected = maps[Path(path).stem]
            for mask, index in zip(
                detections.mask if len(detections) else (), detections.class_id, strict=False
            ):
                errors.append(float(((expected == index + 1) & mask).sum() / max(1, mask.sum())))
    same(total, sum(objects(data, split) for split in data.counts), "objects")
    return f"classes, {total} masks; on average {np.mean(errors):.0%} of a mask's pixels are of its class"


def ultralytics_task(root: Path, task: str) -> str:
    import os

    from ultralytics import YOLO

    os.environ["YOLO_OFFLINE"] = "1"
    model = YOLO("yolo11n-seg.yaml" if task == "segment" else "yolo26n-sem.yaml", task=task)
    with tempfile.TemporaryDirectory() as folder:
        model.train(
            data=str(root / ("segment.yaml" if task == "segment" else "data.yaml")), epochs=2, imgsz=SIZE, batch=8,
            device="cpu", workers=0, project=folder, plots=False, amp=False, verbose=False,
        )  # fmt: skip
    return "two epochs of training"


def hugging_face(root: Path, data: RunDataset) -> str:
    import datasets

    maps = truth(data)
    with tempfile.TemporaryDirectory() as cache:
        found = datasets.load_dataset(str(root), cache_dir=cache)
        names = {"train": "train", "val": "validation", "test": "test"}
        for split, count in data.counts.items():
            part = found[names[split]]
            same(len(part), count, split)
            assert {"source", "original", "prompt", "classes"} <= set(part.column_names), part.column_names
            for row in part:
                same_pixels(np.asarray(row["mask"]), maps[row["id"]], row["id"])
    return "images, splits, columns and every mask pixel"


def webdataset_tars(root: Path, data: RunDataset) -> str:
    import webdataset

    maps, count = truth(data), 0
    shards = [str(p) for p in sorted(root.glob("*.tar"))]
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        same_pixels(np.asarray(sample["mask.png"])[..., 0], maps[sample["__key__"]], sample["__key__"])
        count += 1
    same(count, len(data.records), "samples")
    return "samples and every mask pixel"


def label_studio_tasks(root: Path, data: RunDataset) -> str:
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((root / "labelling.xml").read_text())
    maps, total = truth(data), 0
    tasks = json.loads((root / "tasks.json").read_text())
    same(len(tasks), len(data.records), "tasks")
    for task in tasks:
        assert interface.validate_task({"data": task["data"]}), task["data"]
        assert interface.validate_annotation(task["annotations"][0]), task["data"]["id"]
        expected = maps[task["data"]["id"]]
        painted = np.zeros_like(expected)
        for region in task["annotations"][0]["result"]:
            (name,) = region["value"]["brushlabels"]
            mask = decode_rle(region["value"]["rle"]).reshape(*expected.shape, 4)[..., 3] > 0
            painted[mask] = data.classes.index(name) + 1 if name in data.classes else 255
            total += 1
        same_pixels(painted, expected, task["data"]["id"])
    return f"tasks fit the interface; every pixel of {total} brush labels"


def fiftyone_folders(root: Path, data: RunDataset) -> str:
    """Without FiftyOne's database: its importer alone, which its datasets are filled by."""
    from fiftyone.types import ImageSegmentationDirectory

    maps = truth(data)
    targets = json.loads((root / "mask_targets.json").read_text())
    same([targets[str(i)] for i in range(1, len(data.classes) + 1)], list(data.classes), "classes")
    for split, count in data.counts.items():
        importer = ImageSegmentationDirectory().get_dataset_importer_cls()(
            dataset_dir=str(root / split), load_masks=True
        )
        with importer:
            same(len(importer), count, split)
            for path, _, label in importer:
                same_pixels(label.mask, maps[Path(path).stem], path)
    return "images, classes, splits and every mask pixel (its importer)"


CASES = (
    Case("voc2012", "torchvision", torchvision_voc),
    Case("voc", "supervision", supervision_voc),
    Case("voc", "datumaro", datumaro_voc),
    Case("coco", "pycocotools", pycocotools_coco),
    Case("coco-stuff", "pycocotools", pycocotools_coco),
    Case("coco", "supervision", supervision_coco),
    Case("coco", "datumaro", datumaro_coco),
    Case("coco", "label-studio-sdk", label_studio_coco),
    Case("yolo", "supervision", supervision_yolo),
    Case("yolo", "ultralytics (segment)", lambda root, data: ultralytics_task(root, "segment")),
    Case("yolo", "ultralytics (semantic)", lambda root, data: ultralytics_task(root, "semantic")),
    Case("hf", "datasets", hugging_face),
    Case("webdataset", "webdataset", webdataset_tars),
    Case("fiftyone", "fiftyone", fiftyone_folders),
    Case("label-studio", "label-studio-sdk", label_studio_tasks),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consumers", description=__doc__)
    parser.add_argument("words", nargs="*", help="only cases whose format or library has one of these words")
    words = parser.parse_args().words
    with tempfile.TemporaryDirectory(prefix="segsmith-consumers-") as folder:
        run, ledger, config = made_up_run(Path(folder) / "run", IMAGES, SIZE)
        with closing(ledger):
            data = collect(run, ledger, config)
            print("| export | read with | what agrees |\n| --- | --- | --- |", flush=True)
            for case in CASES:
                if words and not any(word in f"{case.form} {case.library}" for word in words):
                    continue
                root = export_dataset(run, ledger, config, case.form).folder
                agrees = case.check(root, data)
                print(f"| {case.form} | {case.library} | {agrees} |", flush=True)


if __name__ == "__main__":
    main()
