"""The catalogue and the presets agree, and docs/models.md names every model."""

from pathlib import Path

import pytest

from segsmith.config import PRESETS, load_config
from segsmith.tools.weights.catalogue import CATALOGUE
from segsmith.tools.weights.model_requirements import requirements_of

DOCS = Path(__file__).parents[3] / "docs" / "models.md"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_model_of_a_preset_is_known_and_argued(preset):
    text = DOCS.read_text("utf-8")
    for need in requirements_of(load_config(preset=preset)):
        if need.kind != "service":
            assert need.facts is not None, need.name
            assert need.licence in text
        assert need.source.rpartition("/")[2] in text or need.name in text


def test_hashes_are_whole():
    for name, known in CATALOGUE.items():
        assert known.sha256 == "" or len(known.sha256) == 64, name
