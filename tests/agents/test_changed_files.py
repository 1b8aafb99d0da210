"""Files of a run that were swapped or changed are noticed where they are read, not only at the end."""

import shutil
from contextlib import closing

import numpy as np
import pytest

from segsmith.agents.judge.agent import JudgeAgent
from segsmith.config import JudgeConfig
from segsmith.datasets.export import export_dataset
from segsmith.datasets.run_dataset import collect
from segsmith.errors import SegsmithError
from segsmith.testing import CLASSES, made_up_run


class Encoder:
    """A CLIP that gives every text and image the same direction."""

    name = "constant"
    logit_scale = 10.0

    def embed_texts(self, texts):
        return np.ones((len(texts), 4), np.float32) / 2

    def embed_images(self, images):
        return np.ones((len(images), 4), np.float32) / 2


@pytest.fixture
def made(tmp_path):
    run, ledger, config = made_up_run(tmp_path / "run", 4, size=64)
    with closing(ledger):
        yield run, ledger, config


def swap(first, second):
    kept = first.with_suffix(".kept")
    shutil.move(first, kept)
    shutil.move(second, first)
    shutil.move(kept, second)


def test_the_judge_notices_swapped_images(made):
    run, ledger, _ = made
    one, two, *_ = [row.id for row in ledger.images()]
    swap(run.image(one), run.image(two))
    judge = JudgeAgent(
        Encoder(), ledger, run, JudgeConfig(), CLASSES, lambda name: (name,), dict.fromkeys(CLASSES, 1)
    )
    with pytest.raises(SegsmithError, match=f"image {one} is not the one"):
        judge.judge()
    assert ledger.evidence() == {}


@pytest.mark.parametrize("how", ["swapped", "blanked"])
def test_an_export_notices_changed_masks(made, how):
    run, ledger, config = made
    one, two, *_ = [row.id for row in ledger.images()]
    if how == "swapped":
        swap(run.mask(one), run.mask(two))
    else:
        from segsmith.files import png_bytes

        run.mask(one).write_bytes(png_bytes(np.zeros((64, 64), np.uint8)))
    with pytest.raises(SegsmithError, match=f"mask of {one} is not the file"):
        export_dataset(run, ledger, config, "voc")
    original = collect(run, ledger, config)  # of `validate --run`
    with pytest.raises(SegsmithError, match=f"mask of {one} is not the file"):
        original.records[0].load()
