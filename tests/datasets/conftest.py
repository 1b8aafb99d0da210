import pytest

from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.records import Collection, collect
from segsmith.testing import made_up_run


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    """A run of 40 pictures, what it exports, and its export in every format."""
    run, ledger, config = made_up_run(tmp_path_factory.mktemp("made-up") / "run", 40, size=64)
    folders = {form: export_dataset(run, ledger, config, form).folder for form in EXPORTS}
    data = Collection(run, config.classes, collect(run, ledger, config), "")
    yield data, folders
    ledger.close()
