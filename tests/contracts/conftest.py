"""What the contract suites share."""

import pytest

from tests import tiny_pipelines


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """kind -> folder of a tiny saved pipeline, made at first use."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tiny_pipelines.save(kind, tmp_path_factory.mktemp("pipelines") / kind)
        return made[kind]

    return folder
