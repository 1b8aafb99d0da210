import numpy as np
from PIL import Image

SPLITS = {"train": 24, "val": 6, "test": 6}
TINY = {
    "encoder": "tu-test_resnet",
    "encoder_init": "none",
    "epochs": 4,
    "batch_size": 6,
    "learning_rate": 5e-3,
    "ema": 0.9,
}


def write_item(root, name, image, label):
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
    Image.fromarray(label).save(root / "SegmentationClass" / f"{name}.png")


def write_squares(root, classes=("red", "blue"), size=64, splits=SPLITS):
    """A dataset of red and blue squares on noisy grey, with a rim of 255."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        names = [f"{split}{i}" for i in range(count)]
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image = np.clip(rng.normal(128, 20, (size, size, 3)), 0, 255).astype(np.uint8)
            label = np.zeros((size, size), np.uint8)
            for index, colour in ((1, (220, 40, 40)), (2, (40, 40, 220))):
                side = int(rng.integers(14, 24))
                x, y = rng.integers(1, size - side - 1, 2)
                label[y - 1 : y + side + 1, x - 1 : x + side + 1] = 255
                image[y : y + side, x : x + side] = colour
                label[y : y + side, x : x + side] = index
            write_item(root, name, image, label)
    return root
