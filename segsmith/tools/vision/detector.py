"""Open-vocabulary object detectors of transformers as witnesses: OWLv2, Grounding DINO and others of that task.

The whole class list is looked for in every image, so objects that no prompt asked for are found as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from segsmith.config import Config
from segsmith.device_memory import Batches, free_device_memory
from segsmith.devices import autocast, choose_device, choose_dtype
from segsmith.errors import SegsmithError
from segsmith.model_loading import READ_ERRORS, cached_files_only
from segsmith.terminal_text import first_line
from segsmith.tools.weights.model_requirements import detector
from segsmith.tools.weights.store import find
from segsmith.types import Image, Sighting, Testimony

MOST_CLASSES = 20
"""Classes in one query: Grounding DINO reads at most 256 tokens."""
MOST_SIGHTINGS = 50
"""Objects kept of an image, those with the highest scores (ours)."""
BATCH = 8
REMEDY = "Set witnesses.detector to 'off', or to a zero-shot object detection model of transformers."


class DetectorWitness:
    """A `Witness` around any model of transformers' zero-shot object detection.

    A class's score is the highest one of its boxes, and 0 without a box of at least `min_score`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        classes: Sequence[str],
        *,
        name: str,
        min_score: float = 0.1,
        device: str = "cpu",
        precision: str = "auto",
    ) -> None:
        self.name = witness_name(name, min_score)
        self._model = model.eval().requires_grad_(False)
        self._processor = processor
        self._classes = tuple(classes)
        self._min_score = min_score
        self._device = torch.device(device)
        self._dtype = choose_dtype(device, precision)
        size = BATCH if self._device.type == "cuda" else 1
        self._batches = Batches(size, f"one image in the detector {name}", REMEDY)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        classes: Sequence[str],
        *,
        name: str,
        min_score: float = 0.1,
        device: str = "auto",
        precision: str = "auto",
    ) -> DetectorWitness:
        """Load a folder in transformers' format, as safetensors, without running code from it.

        For `device` and `precision` see `segsmith.devices`. Raises `SegsmithError` if the folder holds no such model.
        """
        device = choose_device(device)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with cached_files_only():
                processor = AutoProcessor.from_pretrained(folder, **options)
                model = AutoModelForZeroShotObjectDetection.from_pretrained(
                    folder, use_safetensors=True, **options
                )
        except READ_ERRORS as error:
            raise SegsmithError(
                f"The detector {name} cannot be loaded: {first_line(error)}.", REMEDY
            ) from None
        return cls(
            model, processor, classes, name=name, min_score=min_score, device=device, precision=precision
        )

    def release(self) -> None:
        """Move the weights to main memory; the next image brings them back."""
        self._model.to("cpu")
        free_device_memory()

    @torch.inference_mode()
    def testify(self, images: Sequence[Image], ids: Sequence[str]) -> list[Testimony | None]:
        """See `Witness.testify`."""
        self._model.to(self._device)
        found: list[list[Sighting]] = [[] for _ in images]
        for first in range(0, len(self._classes), MOST_CLASSES):
            classes = self._classes[first : first + MOST_CLASSES]

            def look(start: int, stop: int, classes: tuple[str, ...] = classes) -> list[list[Sighting]]:
                return self._detect(images[start:stop], classes)

            seen = [one for batch in self._batches.run(len(images), look) for one in batch]
            for of_image, new in zip(found, seen, strict=True):
                of_image += new
        return [self._testimony(sightings) for sightings in found]

    def _testimony(self, sightings: Sequence[Sighting]) -> Testimony:
        kept = sorted(sightings, key=lambda s: -s.score)[:MOST_SIGHTINGS]
        best = {
            name: max((s.score for s in kept if s.class_name == name), default=0.0) for name in self._classes
        }
        return Testimony(best, sightings=tuple(kept))

    def _detect(self, images: Sequence[Image], classes: Sequence[str]) -> list[list[Sighting]]:
        """The objects in images of any sizes, one forward pass for all of them."""
        queries = [name.lower() for name in classes]
        inputs = self._processor(
            images=list(images), text=[queries] * len(images), return_tensors="pt", padding=True
        ).to(self._device)
        with autocast(str(self._device), self._dtype):
            outputs = self._model(**inputs)
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        post = self._processor.post_process_grounded_object_detection
        results = post(
            outputs, threshold=self._min_score, target_sizes=sizes, text_labels=[queries] * len(images)
        )
        return [_sightings(result, classes, size) for result, size in zip(results, sizes, strict=True)]


def witness_name(name: str, min_score: float) -> str:
    """What is recorded with what a detector says; no model is loaded to know it."""
    return f"{name}@{min_score:g}"


def open_detector(config: Config) -> DetectorWitness:
    """The detector of `witnesses.detector`, from a folder or the hub's cache.

    Raises `SegsmithError` if it is missing or cannot be loaded.
    """
    name, compute = config.witnesses.detector, config.compute
    requirement = detector(name)
    found = None if requirement is None else find(requirement)
    if found is None:
        raise SegsmithError(f"The detector {name} is not on this machine.", REMEDY)
    return DetectorWitness.load(
        found.path,
        config.classes,
        name=name,
        min_score=config.witnesses.detector_score,
        device=compute.device,
        precision=compute.precision,
    )


def _sightings(result: Any, classes: Sequence[str], size: tuple[int, int]) -> list[Sighting]:
    """Our types, from the scores, boxes (x0, y0, x1, y1 in pixels) and texts of one image of size (H, W)."""
    height, width = size
    found = []
    boxes = result["boxes"].float().cpu().numpy() / [width, height, width, height]
    scores = result["scores"].float().cpu().numpy()
    for score, box, text in zip(scores, boxes, result["text_labels"], strict=True):
        name = class_of(text, classes)
        x0, y0, x1, y1 = map(float, np.clip(box, 0, 1))
        if name is not None and x1 > x0 and y1 > y0:
            found.append(Sighting(name, float(score), (x0, y0, x1, y1)))
    return found


def class_of(text: str, classes: Sequence[str]) -> str | None:
    """The class that a detector's text names; the longest one, if several, and None for no class.

    Grounding DINO answers with the tokens of the query that a box matches, which may be part of a name or of two.
    """
    words = f" {' '.join(text.lower().split())} "
    named = [name for name in classes if f" {' '.join(name.lower().split())} " in words]
    return max(named, key=len) if named else None
