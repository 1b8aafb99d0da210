"""The contract of image backends, tested on the simulator, tiny diffusion pipelines and a server over HTTP.

Local images may differ by `TOLERANCE` of 255 between batches, because matrix products of different shapes
round differently. Measured on the tiny pipelines, in float32 on a CPU: 0 to 1.
"""

from contextlib import contextmanager

import numpy as np
import pytest

from segsmith.config import FaultRates, ImagesConfig
from segsmith.errors import Cancelled
from segsmith.protocols import ImageBackend
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.tools.images.hosted import HostedImages
from segsmith.tools.images.simulator import Simulator
from segsmith.types import ImageRequest
from tests.tools.images.image_server import image_server

SIZE = 64
TOLERANCE = 1
REQUESTS = [ImageRequest(f"a photo of a {c} in a park", 1000 + i) for i, c in enumerate(("cat", "dog") * 2)]
KINDS = ("simulator", "sd", "sdxl", "sd3", "flux", "hosted")


@contextmanager
def opened(kind, pipelines):
    if kind == "simulator":
        yield Simulator(FaultRates(), ("cat", "dog"), SIZE)
    elif kind == "hosted":
        with image_server() as server:
            hosted = {"base_url": server.url, "send_seed": True}
            yield HostedImages(
                ImagesConfig(backend="hosted", model="m", size=SIZE, hosted=hosted), api_key=None
            )
    else:
        yield DiffusionBackend(
            ImagesConfig(backend="diffusion", model=str(pipelines(kind)), size=SIZE, steps=4, guidance=3.0)
        )


@pytest.fixture(params=KINDS)
def backend(request, pipelines):
    with opened(request.param, pipelines) as it:
        yield it
        it.close()


def images(backend, requests):
    drawn = sorted(backend.draw(requests), key=lambda d: d.index)
    assert [d.index for d in drawn] == list(range(len(requests)))
    return [d.image for d in drawn]


def apart(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_images_have_the_requested_size_and_differ(backend):
    assert isinstance(backend, ImageBackend)
    drawn = images(backend, REQUESTS[:2])
    for image in drawn:
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert image.std() > 1
    assert apart(*drawn) > 10


def test_an_image_depends_on_its_request_and_not_on_its_batch(backend):
    together = images(backend, REQUESTS)
    alone = [images(backend, [request])[0] for request in REQUESTS]
    assert max(map(apart, together, alone)) <= TOLERANCE
    assert min(apart(together[0], other) for other in together[1:]) > 10


def test_the_same_request_gives_the_same_image_and_another_seed_a_different_one(backend):
    (first,), (again,) = images(backend, REQUESTS[:1]), images(backend, REQUESTS[:1])
    assert np.array_equal(first, again)
    (other,) = images(backend, [ImageRequest(REQUESTS[0].prompt, 77)])
    assert apart(first, other) > 10


def test_progress_rises_to_one(backend):
    heard = []
    list(backend.draw(REQUESTS[:2], on_step=heard.append))
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1)


def test_it_can_be_stopped_and_used_again(backend):
    def stop(share):
        raise Cancelled

    with pytest.raises(Cancelled):
        list(backend.draw(REQUESTS[:2], on_step=stop))
    assert images(backend, REQUESTS[:1])[0].shape == (SIZE, SIZE, 3)


def test_it_draws_again_after_it_was_closed(backend):
    before = images(backend, REQUESTS[:1])[0]
    backend.close()
    assert np.array_equal(images(backend, REQUESTS[:1])[0], before)


def test_nothing_asked_nothing_drawn_is_never_sent_to_a_model(backend):
    assert backend.usd_per_image == 0
    assert backend.name
