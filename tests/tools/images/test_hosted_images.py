"""Hosted images against a server that misbehaves: tried again, refused, fetched by URL, explained in one line."""

import time

import pytest

from segsmith.config import ImagesConfig
from segsmith.errors import SegsmithError
from segsmith.tools.images.hosted import HostedImages, check_hosted
from segsmith.types import ImageRequest
from tests.tools.images.image_server import image_server

REQUESTS = [ImageRequest(f"a photo of a cat, take {i}", 1000 * i) for i in range(12)]


def backend(server, key=None, model="m", size=64, **hosted):
    hosted = {"base_url": server if isinstance(server, str) else server.url, "usd_per_image": 0.04, **hosted}
    return HostedImages(ImagesConfig(backend="hosted", model=model, size=size, hosted=hosted), api_key=key)


def test_every_first_try_fails_and_every_picture_comes_once():
    with image_server(busy=0.5, broken=0.5) as server:
        drawn = list(backend(server, concurrency=4).draw(REQUESTS))
        assert sorted(d.index for d in drawn) == list(range(12))
        assert all(d.image.shape == (64, 64, 3) and d.usd == 0.04 for d in drawn)
        assert server.account.requests == 24
        assert set(server.account.drawn.values()) == {1}
        assert {429, 500} <= set(server.account.statuses)
        assert 1 < server.account.most_at_once <= 4


def test_it_waits_as_long_as_the_server_says():
    with image_server(busy=1.0, retry_after="0.7") as server:
        started = time.monotonic()
        list(backend(server).draw(REQUESTS[:1]))
        assert 0.7 <= time.monotonic() - started < 3


def test_a_picture_that_came_too_late_is_not_billed_again():
    with image_server(slow=1.0, delay_s=0.8) as server:
        drawn = list(backend(server, timeout_s=0.3).draw(REQUESTS[:2]))
        assert all(d.image is not None for d in drawn)
        assert server.account.requests == 4
        assert set(server.account.drawn.values()) == {1}


def test_refusals_are_reasons_and_cost_nothing():
    with image_server(refusals=1.0) as server:
        (drawn,) = backend(server).draw(REQUESTS[:1])
        assert (drawn.image, drawn.reason, drawn.usd) == (None, "refused", 0.0)
        assert "safety system" in drawn.detail
        assert server.account.requests == 1  # a refusal is an answer, not to be asked again


def test_a_picture_may_come_by_url():
    with image_server(reply="url") as server:
        (drawn,) = backend(server, reply="url").draw(REQUESTS[:1])
        assert drawn.image.shape == (64, 64, 3)
        assert server.account.bodies[0]["response_format"] == "url"


def test_only_what_is_set_is_sent():
    with image_server() as server:
        list(backend(server).draw(REQUESTS[:1]))
        list(backend(server, quality="low", send_seed=True).draw(REQUESTS[1:2]))
        assert set(server.account.bodies[0]) == {"model", "prompt", "n", "size"}
        assert server.account.bodies[1]["seed"] == 1000
        assert server.account.bodies[1]["quality"] == "low"


def test_after_a_failure_what_is_paid_is_still_handed_over():
    with image_server(slow=0.4, delay_s=0.2) as server:
        got = []

        def fail_from_now_on(share):
            server.manners.always = 500

        it = backend(server, retries=0).draw(REQUESTS, on_step=fail_from_now_on)
        with pytest.raises(SegsmithError):
            got.extend(it)
        assert len(got) == sum(server.account.drawn.values())
        assert len(got) < len(REQUESTS)


@pytest.mark.parametrize(
    ("manners", "settings", "says"),
    [
        ({"key": "right"}, {"key": "wrong"}, "rejects the key.*OPENAI_API_KEY"),
        ({"always": 500}, {"retries": 1}, "failed"),
        ({"always": 429}, {"retries": 1}, "limits the number of requests"),
        ({"always": 404}, {}, "has no image model 'm'"),
        ({"always": 400}, {}, "rejects the request"),
        ({"garbage": True}, {}, "without a usable image"),
        ({"slow": 1.0, "delay_s": 0.6}, {"timeout_s": 0.2, "retries": 0}, "took longer than 0.2 s"),
    ],
)
def test_what_went_wrong_is_one_line_with_a_remedy(manners, settings, says):
    with image_server(**manners) as server, pytest.raises(SegsmithError, match=says) as caught:
        list(backend(server, **settings).draw(REQUESTS[:1]))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_nobody_answers():
    with pytest.raises(SegsmithError, match=r"No image server answers at http://127\.0\.0\.1:9/v1"):
        list(backend("http://127.0.0.1:9/v1", retries=0).draw(REQUESTS[:1]))


def test_what_is_missing_is_said_before_anything_starts():
    with pytest.raises(SegsmithError, match=r"need a key.*OPENAI_API_KEY"):
        HostedImages(ImagesConfig(backend="hosted", model="m"), api_key=None)
    with pytest.raises(SegsmithError, match="No image model"):
        HostedImages(ImagesConfig(backend="hosted"), api_key="k")
    with pytest.raises(SegsmithError, match="usd_per_image"):
        check_hosted(ImagesConfig(backend="hosted", model="m"), api_key="k", max_usd=5.0)
