"""segsmith builds a labelled segmentation dataset from a class list, and trains a segmenter on it.

    import segsmith

    run = segsmith.build(["cat", "dog"], per_class=40, out="runs/pets")
    print(run.evaluation.miou)
    run.export("coco")

Names are imported when they are first used, so importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segsmith.config import Config, load_config
    from segsmith.datasets.records import Origin
    from segsmith.errors import SegsmithError
    from segsmith.events import Event, SessionEnded, Stage, Status
    from segsmith.locks import locking
    from segsmith.types import ClassTally, Evaluation
    from segsmith.workflows.augment import augment
    from segsmith.workflows.build import build
    from segsmith.workflows.dense_labels import MaskQuality
    from segsmith.workflows.evaluate import evaluate
    from segsmith.workflows.export_model import ExportedModel, export_model
    from segsmith.workflows.merge import merge
    from segsmith.workflows.predict import predict
    from segsmith.workflows.refine import Refinement, refine
    from segsmith.workflows.rejudge import Rejudged, rejudge
    from segsmith.workflows.reviewing import Pause
    from segsmith.workflows.run import DatasetImage, Run, Story, open_run
    from segsmith.workflows.train import Training, train
    from segsmith.workflows.verify import Verification, verify

__all__ = [
    "ClassTally",
    "Config",
    "DatasetImage",
    "Evaluation",
    "Event",
    "ExportedModel",
    "MaskQuality",
    "Origin",
    "Pause",
    "Refinement",
    "Rejudged",
    "Run",
    "SegsmithError",
    "SessionEnded",
    "Stage",
    "Status",
    "Story",
    "Training",
    "Verification",
    "augment",
    "build",
    "evaluate",
    "export_model",
    "load_config",
    "locking",
    "merge",
    "open_run",
    "predict",
    "refine",
    "rejudge",
    "train",
    "verify",
]

_MODULES = {
    "config": ("Config", "load_config"),
    "datasets.records": ("Origin",),
    "errors": ("SegsmithError",),
    "events": ("Event", "SessionEnded", "Stage", "Status"),
    "locks": ("locking",),
    "types": ("ClassTally", "Evaluation"),
    "workflows.augment": ("augment",),
    "workflows.build": ("build",),
    "workflows.dense_labels": ("MaskQuality",),
    "workflows.evaluate": ("evaluate",),
    "workflows.merge": ("merge",),
    "workflows.export_model": ("ExportedModel", "export_model"),
    "workflows.predict": ("predict",),
    "workflows.refine": ("Refinement", "refine"),
    "workflows.rejudge": ("Rejudged", "rejudge"),
    "workflows.reviewing": ("Pause",),
    "workflows.run": ("DatasetImage", "Run", "Story", "open_run"),
    "workflows.train": ("Training", "train"),
    "workflows.verify": ("Verification", "verify"),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
