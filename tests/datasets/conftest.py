from dataclasses import dataclass
from pathlib import Path

import pytest

from segsmith.config import Config
from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.run_dataset import RunDataset, collect
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import made_up_run


@dataclass(frozen=True)
class MadeUp:
    """A run, what it exports, and the folder of its export in every format."""

    data: RunDataset
    folders: dict[str, Path]
    run: RunFolder
    config: Config


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    """A run of 40 images."""
    run, ledger, config = made_up_run(tmp_path_factory.mktemp("made-up") / "run", 40, size=64)
    folders = {form: export_dataset(run, ledger, config, form).folder for form in EXPORTS}
    yield MadeUp(collect(run, ledger, config), folders, run, config)
    ledger.close()
