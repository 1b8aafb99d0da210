"""Every setting that a command accepts has an effect there, or is rejected by name."""

from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import BaseModel

import segsmith as api
from segsmith.config import Config, Section, load_config
from segsmith.datasets.voc_layout import write_voc
from segsmith.errors import SegsmithError
from segsmith.workflows.settings import (
    UNUSED_BY,
    USED_BY,
    USED_WITH,
    check_used,
    check_used_with,
    nested,
    segmenter_config,
)
from segsmith.workflows.weaken import weaken_dataset


def leaves(model=Config, prefix="") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


SETTINGS = tuple(leaves())


def accepted(command):
    def is_accepted(key):
        try:
            check_used(command, {key: 1})
        except SegsmithError:
            return False
        return True

    return {key for key in SETTINGS if is_accepted(key)}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A dataset, and its weak labels of two kinds."""
    root, rng = tmp_path_factory.mktemp("used"), np.random.default_rng(0)

    def item(name):
        label_map = np.full((64, 64), 1, np.uint8)
        label_map[30:] = 2
        label_map[20:40, int(rng.integers(0, 40)) :][:, :20] = 3
        colours = np.array([[0, 0, 0], [120, 170, 230], [90, 90, 90], [200, 40, 40]])
        return name, np.clip(rng.normal(colours[label_map], 10), 0, 255).astype(np.uint8), label_map

    splits = {split: [item(f"{split}{i}") for i in range(n)] for split, n in (("train", 6), ("val", 2))}
    write_voc(root / "full", ("sky", "road", "car"), splits)
    for kind in ("scribbles", "image"):
        weaken_dataset(root / "full", root / kind, kind, 0)
    return root


@pytest.fixture
def read(monkeypatch):
    """The settings that are read, by section and name; dumps for fingerprints and records do not count."""
    sections = {type(getattr(load_config(), name)).__name__: name for name in Config.model_fields}
    seen = set()

    def getattribute(self, name):
        section = sections.get(type(self).__name__)
        if section and name in type(self).model_fields:
            seen.add(f"{section}.{name}")
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Section, "__getattribute__", getattribute, raising=False)
    return seen


QUICK = {"trainer.steps": 2, "trainer.patience": 1, "trainer.teacher_from": 0, "trainer.teacher_weight": 1}
FROM_CLIP = {"trainer.encoder_init": "clip"}


def test_train_reads_every_setting_that_it_accepts(streets, tmp_path, read):
    api.train(streets / "full", tmp_path, settings=QUICK | FROM_CLIP, progress=False)
    assert accepted("train") - read - {"trainer.real_share", "trainer.real_passes"} == set()
    assert not accepted("train") & {"trainer.sam_weight", "labeler.points", "images.size"}


def test_refine_reads_every_setting_that_it_accepts(streets, tmp_path, read):
    for kind, changes in (("scribbles", FROM_CLIP), ("image", {"labeler.epochs": 1, "labeler.folds": 2})):
        api.refine(streets / kind, tmp_path / kind, settings=QUICK | changes, progress=False)
    assert accepted("refine") - read == set()


def network_of(config):
    trainer = config.trainer
    return trainer.encoder, trainer.freeze_encoder, trainer.learning_rate


def test_given_labels_teach_a_network_of_their_own_unless_the_user_wants_the_judges(
    streets, tmp_path, monkeypatch
):
    """The mini CLIP, from which `build` takes the classes, knows sprites only."""
    own = ("tu-resnet10t", False, 0.001)
    assert network_of(load_config(preset="sim")) == ("judge", True, 0.002)
    assert network_of(segmenter_config("train", {}, {})) == own
    judges = {"trainer.encoder": "judge", "trainer.encoder_init": "clip", "trainer.freeze_encoder": True}
    assert network_of(segmenter_config("train", judges, {})) == ("judge", True, 0.001)
    built = []
    monkeypatch.setattr(
        "segsmith.workflows.augment.check_classes", lambda config: None
    )  # it draws no streets
    monkeypatch.setattr(
        "segsmith.workflows.augment.run_with_display", lambda config, *more, **named: built.append(config)
    )
    asked = {"add_per_class": 1, "preset": "sim", "allow_simulator": True, "progress": False}
    api.augment(streets / "full", tmp_path / "a", **asked)
    api.augment(streets / "full", tmp_path / "b", **asked, settings={"trainer.encoder": "judge"})
    assert [network_of(config) for config in built] == [own, ("judge", False, 0.001)]


@pytest.mark.parametrize("command", USED_BY)
def test_the_lists_name_settings_that_exist(command):
    for pattern in (*USED_BY[command], *UNUSED_BY[command]):
        assert not pattern or any(key == pattern or key.startswith(f"{pattern}.") for key in SETTINGS)


def test_every_command_rejects_what_it_does_not_use(streets, tmp_path):
    """Through the public functions, before anything is written."""
    out = tmp_path / "out"
    full, weak = streets / "full", streets / "scribbles"
    calls = {
        "train": lambda key: api.train(full, out, settings={key: default(key)}, progress=False),
        "refine": lambda key: api.refine(weak, out, settings={key: default(key)}, progress=False),
        "rejudge": lambda key: api.open_run(full).rejudge(settings={key: default(key)}),
        "build": lambda key: api.build(
            ["cat"], out=out, preset="sim", settings={key: default(key)}, progress=False
        ),
        "augment": lambda key: api.augment(
            full, out, add_per_class=1, preset="sim", settings={key: default(key)}, progress=False
        ),
    }
    assert calls.keys() == USED_BY.keys()
    for command in ("train", "refine", "build", "augment"):
        for key in sorted(set(SETTINGS) - accepted(command)):
            with pytest.raises(SegsmithError, match=f"{key} has no effect in `segsmith {command}`"):
                calls[command](key)
    assert not out.exists()


@pytest.mark.parametrize("pattern", USED_WITH)
def test_what_another_backend_or_server_would_use_is_rejected(pattern, tmp_path):
    keys = [key for key in SETTINGS if key == pattern or key.startswith(f"{pattern}.")]
    assert keys
    chooser, values = USED_WITH[pattern]
    others = {
        "images.backend": ("simulator", "diffusion", "hosted"),
        "llm.server": ("llamacpp", "vllm", "openai"),
    }
    for other in set(others[chooser]) - set(values):
        config = load_config(flags={**nested({chooser: other, "images.model": "m"})})
        message = f"{keys[0]} has no effect with {chooser} = '{other}'"
        with pytest.raises(SegsmithError, match=message):
            check_used_with(config, {keys[0]: default(keys[0])})
        check_used_with(config, {keys[0]: default(keys[0])}, replaced=("backend", "chat"))
    for used in values:
        check_used_with(load_config(flags=nested({chooser: used})), {keys[0]: default(keys[0])})
    with pytest.raises(SegsmithError, match="has no effect with"):
        api.build(["cat"], out=tmp_path / "r", preset="sim", settings={"images.steps": 3}, progress=False)
    assert not (tmp_path / "r").exists()


def default(key):
    """A valid value of a setting."""
    value = load_config()
    for part in key.split("."):
        value = getattr(value, part)
    return "" if value is None else value
