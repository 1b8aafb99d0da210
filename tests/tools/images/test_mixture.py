"""A mixture draws each image with the model that its prompt and seed choose, in the shares asked for."""

from collections import Counter

import numpy as np
import pytest

from segsmith.config import ImagesConfig, config_toml, load_config
from segsmith.errors import OutOfMemory, SegsmithError
from segsmith.protocols import ImageBackend, ImageMixtureBackend
from segsmith.tools.images.mixture import ImageMixture
from segsmith.types import SEEDS_PER_PROMPT, Drawn, ImageRequest


def config(**shares):
    models = [{"model": f"org/{name}", "share": share} for name, share in shares.items()]
    return ImagesConfig(backend="diffusion", models=models)


class Part:
    """A backend whose images have the colour of its model."""

    usd_per_image = 0.0
    loaded: set

    def __init__(self, config, loaded, most=99):
        self.name, self.loads, self._loaded, self._most = f"{config.model}@main/x", 0, loaded, most

    def draw(self, requests, gate=None, on_step=lambda share: None):
        if self.name not in self._loaded:
            self.loads += 1
        self._loaded.add(self.name)
        assert len(self._loaded) == 1
        if len(requests) > self._most:
            raise OutOfMemory
        reasons = gate(range(len(requests)), [np.zeros((8, 8, 3), np.uint8)] * len(requests)) if gate else []
        for index in range(len(requests)):
            if reasons and reasons[index]:
                yield Drawn(index, None, reasons[index])
            else:
                yield Drawn(index, np.full((8, 8, 3), len(self.name), np.uint8))
        on_step(1.0)

    def close(self):
        self._loaded.discard(self.name)


def mixture(shares, most=99):
    loaded = set()
    return ImageMixture(config(**shares), lambda part: Part(part, loaded, most))


def requests(prompts, seeds=4):
    return [
        ImageRequest(f"photo {p}", p * SEEDS_PER_PROMPT + s) for p in range(prompts) for s in range(seeds)
    ]


def test_shares_are_met_and_one_prompt_is_drawn_by_several_models():
    it = mixture({"klein": 0.5, "sdxl": 0.3, "lcm": 0.2})
    assert isinstance(it, ImageMixtureBackend)
    asked = requests(200)
    chosen = [it.model_of(request) for request in asked]
    counts = Counter(chosen)
    assert counts["org/klein@main/x"] == pytest.approx(400, abs=16)
    assert counts["org/sdxl@main/x"] == pytest.approx(240, abs=16)
    halves = mixture({"a": 0.5, "b": 0.5})
    assert {len({halves.model_of(r) for r in asked[i : i + 2]}) for i in range(0, 800, 4)} == {2}


def test_the_model_of_an_image_depends_on_its_request_only():
    first, second = mixture({"a": 0.4, "b": 0.6}), mixture({"a": 0.4, "b": 0.6})
    assert [first.model_of(r) for r in requests(20)] == [second.model_of(r) for r in reversed(requests(20))][
        ::-1
    ]
    assert first.name == second.name != mixture({"a": 0.5, "b": 0.5}).name


def test_models_are_drawn_one_after_the_other_and_only_one_is_loaded():
    it = mixture({"a": 0.5, "longer": 0.5})
    asked, heard = requests(6), []
    for _ in range(2):
        drawn = {d.index: d.image for d in it.draw(asked, on_step=heard.append)}
        assert sorted(drawn) == list(range(len(asked)))
        assert all(drawn[i].max() == len(it.model_of(r)) for i, r in enumerate(asked))
    assert [part.loads for part in it._parts] == [1, 1 + 0] or sum(p.loads for p in it._parts) == 3
    assert heard[1] == heard[3] == pytest.approx(1.0)
    it.close()
    assert not it._parts[0]._loaded


def test_the_gate_is_asked_with_the_indices_of_the_whole_batch():
    it, asked, seen = mixture({"a": 0.5, "b": 0.5}), requests(4), []

    def gate(indices, previews):
        seen.extend(indices)
        return ["filtered" if index % 2 else None for index in indices]

    drawn = {d.index: d for d in it.draw(asked, gate)}
    assert sorted(seen) == list(range(len(asked)))
    assert all((drawn[i].image is None) == bool(i % 2) for i in drawn)


def test_memory_that_runs_out_for_the_second_model_costs_none_of_the_first_ones_images():
    whole = mixture({"a": 0.5, "b": 0.5}, most=1)
    with pytest.raises(OutOfMemory):
        list(whole.draw(requests(4)))
    asked = requests(4)
    it = mixture({"a": 0.5, "b": 0.5})
    it._parts[1]._most = 1
    assert sorted(d.index for d in it.draw(asked)) == list(range(len(asked)))
    it._parts[1]._most = 0
    it.close()
    with pytest.raises(SegsmithError, match="too little memory for one image of org/b"):
        list(it.draw(asked))


def test_one_model_is_a_plain_backend_with_the_settings_of_its_own():
    (part,) = ImagesConfig(backend="diffusion", model="a/b", steps=3).parts
    assert (part.model, part.steps) == ("a/b", 3)
    given = ImagesConfig(
        backend="diffusion", model="a/b", steps=30, size=512,
        models=[{"model": "c/d", "share": 0.5, "steps": 4}, {"model": "e/f", "share": 0.5}],
    )  # fmt: skip
    assert [(p.model, p.steps, p.size, p.models) for p in given.parts] == [
        ("c/d", 4, 512, ()),
        ("e/f", None, 512, ()),
    ]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"models": [{"model": "a/b", "share": 0.5}]}, "the shares must sum to 1, but sum to 0.5"),
        ({"models": [{"model": "a/b"}]}, "'images.models.0.share': Field required"),
        ({"models": [{"model": "a/b", "share": 1, "stpes": 4}]}, "Unknown setting.*Known here:.*steps"),
        ({"backend": "simulator", "models": [{"model": "a/b", "share": 1}]}, "needs images.backend"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_one_line(images, says):
    with pytest.raises(SegsmithError, match=says) as caught:
        load_config(preset="gpu", flags={"images": images})
    assert "\n" not in str(caught.value)


def test_a_mixture_survives_run_toml():
    import tomllib

    from segsmith.config import parse_config

    flags = {"models": [{"model": "a/b", "share": 0.5, "steps": 4}, {"model": "c/d", "share": 0.5}]}
    before = load_config(preset="gpu", flags={"images": flags})
    assert parse_config(tomllib.loads(config_toml(before)), "test") == before
    assert isinstance(mixture({"a": 1.0}), ImageBackend)
