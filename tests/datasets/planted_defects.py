"""Defects to plant into a clean export, and the kind of problem under which validate must find each."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image as PILImage

from segsmith.datasets.staging import MANIFEST


@dataclass(frozen=True)
class Defect:
    """`plant` spoils a folder; `with_run` where it shows only beside the run."""

    name: str
    form: str
    kind: str
    plant: Callable[[Path], None]
    with_run: bool = False


DEFECTS: list[Defect] = []


def defect(name: str, form: str, kind: str, *, with_run: bool = False) -> Callable:
    def keep(plant: Callable[[Path], None]) -> Callable[[Path], None]:
        DEFECTS.append(Defect(name, form, kind, plant, with_run))
        return plant

    return keep


def spoiled(clean: Path, work: Path, one: Defect) -> Path:
    """A copy of a clean export with one defect; without its manifest, which would tell on any change."""
    root = work / one.name.replace(" ", "-")
    shutil.copytree(clean, root)
    (root / MANIFEST).unlink()
    one.plant(root)
    return root


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def edit_mask(path: Path, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    with PILImage.open(path) as image:
        pixels, palette, mode = np.array(image), image.getpalette(), image.mode
    changed = change(pixels)
    pixels = pixels if changed is None else changed
    saved = PILImage.fromarray(pixels)
    if mode == "P":
        saved = saved.convert("P")
        saved.putpalette(palette)
    saved.save(path)


def names_of(root: Path, split: str) -> list[str]:
    return (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()


def write_names(root: Path, split: str, names: list[str]) -> None:
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{n}\n" for n in names))


def train_json(root: Path) -> Path:
    return root / "annotations/instances_train.json"


def edit_tar(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def set_pixel(value: int) -> Callable[[np.ndarray], None]:
    def change(pixels: np.ndarray) -> None:
        pixels[0, 0] = value

    return change


# -- PASCAL VOC -----------------------------------------------------------------------------------------


@defect("truncated image", "voc", "corrupt_image")
def _(root: Path) -> None:
    truncate(first(root, "JPEGImages/*"))


@defect("truncated mask", "voc", "corrupt_mask")
def _(root: Path) -> None:
    truncate(first(root, "SegmentationClass/*.png"))


@defect("mask without a file", "voc", "missing_file")
def _(root: Path) -> None:
    first(root, "SegmentationClass/*.png").unlink()


@defect("image listed but not there", "voc", "missing_file")
def _(root: Path) -> None:
    write_names(root, "test", [*names_of(root, "test"), "i-nowhere"])


@defect("mask of another size", "voc", "wrong_size")
def _(root: Path) -> None:
    edit_mask(first(root, "SegmentationClass/*.png"), lambda m: m[:-3])


@defect("undefined index in a mask", "voc", "undefined_index")
def _(root: Path) -> None:
    edit_mask(first(root, "SegmentationClass/*.png"), set_pixel(77))


@defect("mask saved in colours", "voc", "colour_mask")
def _(root: Path) -> None:
    path = first(root, "SegmentationClass/*.png")
    PILImage.open(path).convert("RGB").save(path)


@defect("mask that knows no pixel", "voc", "all_unknown")
def _(root: Path) -> None:
    edit_mask(first(root, "SegmentationClass/*.png"), lambda m: np.full_like(m, 255))


@defect("image in train and in val", "voc", "split_leak")
def _(root: Path) -> None:
    write_names(root, "val", [*names_of(root, "val"), names_of(root, "train")[0]])


@defect("name twice in a split", "voc", "duplicate_id")
def _(root: Path) -> None:
    names = names_of(root, "test")
    write_names(root, "test", [*names, names[0]])


@defect("same image recompressed in another split", "voc", "near_duplicate")
def _(root: Path) -> None:
    source, target = names_of(root, "train")[0], names_of(root, "test")[0]
    (root / f"JPEGImages/{target}.png").unlink()
    with PILImage.open(root / f"JPEGImages/{source}.png") as image:
        image.save(root / f"JPEGImages/{target}.jpg", quality=60)


@defect("class without a pixel", "voc", "empty_class")
def _(root: Path) -> None:
    with (root / "classes.txt").open("a") as file:
        file.write("unicorn\n")


@defect("class list missing", "voc", "no_classes")
def _(root: Path) -> None:
    for name in ("classes.txt", "labelmap.txt"):
        (root / name).unlink()


@defect("class of test and val not in train", "voc", "untrained_class")
def _(root: Path) -> None:
    for name in names_of(root, "train"):
        edit_mask(root / f"SegmentationClass/{name}.png", lambda m: np.where(m == 2, 0, m).astype(np.uint8))


@defect("trainval that contradicts train and val", "voc", "bad_split")
def _(root: Path) -> None:
    write_names(root, "trainval", names_of(root, "train"))


# -- COCO -----------------------------------------------------------------------------------------------


@defect("box wider than its mask", "coco", "bad_box")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["annotations"][0]["bbox"].__setitem__(2, 90.0))


@defect("box beyond the image", "coco", "bad_box")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["annotations"][0]["bbox"].__setitem__(0, 4000.0))


@defect("area that is not the mask's", "coco", "bad_area")
def _(root: Path) -> None:
    def change(content: dict) -> None:
        one = content["annotations"][0]
        one["area"] = 2 * one["bbox"][2] * one["bbox"][3]

    edit_json(train_json(root), change)


@defect("annotation of an unlisted image", "coco", "unknown_image")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["annotations"][0].__setitem__("image_id", 987654))


@defect("annotation of an unlisted category", "coco", "unknown_class")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["annotations"][0].__setitem__("category_id", 91))


@defect("annotation id used twice", "coco", "duplicate_id")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["annotations"][1].__setitem__("id", c["annotations"][0]["id"]))


@defect("damaged RLE", "coco", "bad_mask")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["annotations"][0].__setitem__("segmentation", {"counts": 3}))


@defect("stated size not that of the file", "coco", "wrong_size")
def _(root: Path) -> None:
    edit_json(train_json(root), lambda c: c["images"][0].__setitem__("width", 640))


@defect("annotation file cut short", "coco", "bad_file")
def _(root: Path) -> None:
    truncate(train_json(root))


# -- Ultralytics ----------------------------------------------------------------------------------------


@defect("class ids with a gap", "yolo", "unknown_class")
def _(root: Path) -> None:
    path = root / "data.yaml"
    content = yaml.safe_load(path.read_text())
    content["names"][9] = content["names"].pop(2)
    path.write_text(yaml.safe_dump(content))


@defect("palette mask", "yolo", "colour_mask")
def _(root: Path) -> None:
    path = first(root, "masks/train/*.png")
    image = PILImage.open(path).convert("P")
    image.save(path)


@defect("val without images", "yolo", "empty_split")
def _(root: Path) -> None:
    for path in (root / "images/val").iterdir():
        path.unlink()


# -- CVAT -----------------------------------------------------------------------------------------------


@defect("colour that no label has", "cvat", "undefined_index")
def _(root: Path) -> None:
    path = root / "labelmap.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("ignored")]
    path.write_text("\n".join(lines) + "\n")


@defect("object masks missing", "cvat", "missing_file")
def _(root: Path) -> None:
    shutil.rmtree(root / "SegmentationObject")


# -- WebDataset -----------------------------------------------------------------------------------------


@defect("shard cut short", "webdataset", "corrupt_shard")
def _(root: Path) -> None:
    truncate(root / "train-000000.tar", 0.7)


@defect("sample without its mask", "webdataset", "missing_file")
def _(root: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        del members[next(name for name in members if name.endswith(".mask.png"))]

    edit_tar(root / "train-000000.tar", change)


@defect("shard gone", "webdataset", "missing_file")
def _(root: Path) -> None:
    (root / "val-000000.tar").unlink()


# -- Hugging Face ---------------------------------------------------------------------------------------


@defect("metadata of a file that is not there", "hf", "missing_file")
def _(root: Path) -> None:
    first(root, "train/masks/*.png").unlink()


@defect("image that no metadata names", "hf", "stray_file")
def _(root: Path) -> None:
    source = first(root, "train/images/*.png")
    shutil.copy(source, source.with_name("extra.png"))


@defect("label of an unlisted class", "hf", "unknown_class")
def _(root: Path) -> None:
    path = root / "train/metadata.jsonl"
    lines = path.read_text("utf-8").splitlines()
    row = json.loads(lines[0])
    row["classes"] = ["unicorn"]
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n", "utf-8")


# -- beside the run -------------------------------------------------------------------------------------


@defect("one mask pixel changed", "webdataset", "other_mask", with_run=True)
def _(root: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith(".mask.png"))
        pixels = np.array(PILImage.open(io.BytesIO(members[name])))
        pixels[0, 0] = 1 if pixels[0, 0] != 1 else 0
        buffer = io.BytesIO()
        PILImage.fromarray(pixels).save(buffer, "PNG")
        members[name] = buffer.getvalue()

    edit_tar(root / "train-000000.tar", change)


@defect("one image pixel changed", "yolo", "other_image", with_run=True)
def _(root: Path) -> None:
    edit_mask(first(root, "images/train/*.png"), lambda p: set_pixel(255 - int(p[0, 0, 0]))(p))


@defect("classes in another order", "voc", "other_classes", with_run=True)
def _(root: Path) -> None:
    path = root / "classes.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")


@defect("image moved to another split", "voc", "other_split", with_run=True)
def _(root: Path) -> None:
    train, test = names_of(root, "train"), names_of(root, "test")
    write_names(root, "train", train[1:])
    write_names(root, "trainval", [*train[1:], *names_of(root, "val")])
    write_names(root, "test", [*test, train[0]])


@defect("image left out", "coco", "lost_image", with_run=True)
def _(root: Path) -> None:
    def change(content: dict) -> None:
        gone = content["images"].pop()["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]

    edit_json(train_json(root), change)


@defect("image label changed", "hf", "other_labels", with_run=True)
def _(root: Path) -> None:
    path = root / "train/metadata.jsonl"
    lines = path.read_text("utf-8").splitlines()
    row = json.loads(lines[0])
    row["classes"] = ["bus"] if row["classes"] != ["bus"] else ["cat"]
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n", "utf-8")


# -- FiftyOne -------------------------------------------------------------------------------------------


@defect("palette mask for FiftyOne", "fiftyone", "colour_mask")
def _(root: Path) -> None:
    path = first(root, "train/labels/*.png")
    PILImage.open(path).convert("P").save(path)


@defect("FiftyOne mask without an image", "fiftyone", "stray_file")
def _(root: Path) -> None:
    first(root, "train/data/*").unlink()


@defect("FiftyOne image without a mask", "fiftyone", "missing_file")
def _(root: Path) -> None:
    first(root, "val/labels/*.png").unlink()


@defect("mask targets with a gap", "fiftyone", "no_classes")
def _(root: Path) -> None:
    edit_json(root / "mask_targets.json", lambda targets: targets.pop("1"))


@defect("mask targets that lack a class", "fiftyone", "undefined_index")
def _(root: Path) -> None:
    edit_json(root / "mask_targets.json", lambda targets: targets.pop("4"))


@defect("FiftyOne mask of the run changed", "fiftyone", "other_mask", with_run=True)
def _(root: Path) -> None:
    edit_mask(first(root, "test/labels/*.png"), set_pixel(1))


# -- Label Studio ---------------------------------------------------------------------------------------


def edit_regions(root: Path, change: Callable[[dict], None]) -> None:
    edit_json(root / "tasks.json", lambda tasks: change(tasks[0]["annotations"][0]["result"][0]))


@defect("brush label cut short", "label-studio", "bad_mask")
def _(root: Path) -> None:
    edit_regions(root, lambda region: region["value"]["rle"].__delitem__(slice(20, None)))


@defect("brush label that is no code", "label-studio", "bad_mask")
def _(root: Path) -> None:
    edit_regions(root, lambda region: region["value"].update(rle=10**12))


@defect("brush label of another size", "label-studio", "wrong_size")
def _(root: Path) -> None:
    edit_regions(root, lambda region: region.update(original_width=65))


@defect("brush label of no class", "label-studio", "bad_file")
def _(root: Path) -> None:
    edit_regions(root, lambda region: region["value"].update(brushlabels=[]))


@defect("PNG that is not the brush label", "label-studio", "bad_mask")
def _(root: Path) -> None:
    edit_mask(first(root, "masks/*.png"), set_pixel(128))


@defect("brush label of an unknown class", "label-studio", "unknown_class")
def _(root: Path) -> None:
    edit_regions(root, lambda region: region["value"].update(brushlabels=["quokka"]))


@defect("PNG of no brush label", "label-studio", "stray_file")
def _(root: Path) -> None:
    edit_json(root / "tasks.json", lambda tasks: tasks[0]["annotations"][0]["result"].pop())


@defect("task of an image that is not there", "label-studio", "missing_file")
def _(root: Path) -> None:
    first(root, "images/*").unlink()


@defect("task of an image elsewhere", "label-studio", "outside_path")
def _(root: Path) -> None:
    image = "/data/local-files/?d=../../secret.png"
    edit_json(root / "tasks.json", lambda tasks: tasks[0]["data"].update(image=image))


@defect("image of another class in Label Studio", "label-studio", "other_labels", with_run=True)
def _(root: Path) -> None:
    edit_json(root / "tasks.json", lambda tasks: tasks[0]["data"].update(classes=["cat", "dog", "bus"]))
