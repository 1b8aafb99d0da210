"""Hosted images against a server that misbehaves: retries, refusals, images by URL, one-line errors."""

import io
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from PIL import Image as PILImage

from segsmith.config import ImagesConfig
from segsmith.errors import SegsmithError
from segsmith.tools.images.hosted import MAX_IMAGE_BYTES, HostedImages, check_hosted
from segsmith.types import ImageRequest
from tests.tools.images.image_server import image_server

REQUESTS = [ImageRequest(f"a photo of a cat, take {i}", 1000 * i) for i in range(12)]


def backend(server, key=None, model="m", size=64, pause=None, **hosted):
    hosted = {"base_url": server if isinstance(server, str) else server.url, "usd_per_image": 0.04, **hosted}
    config = ImagesConfig(backend="hosted", model=model, size=size, hosted=hosted)
    return HostedImages(config, api_key=key, pause=pause)


def test_every_first_try_fails_and_every_image_arrives_once():
    with image_server(busy=0.5, broken=0.5) as server:
        drawn = list(backend(server, concurrency=4).draw(REQUESTS))
        assert sorted(d.index for d in drawn) == list(range(12))
        assert all(d.image.shape == (64, 64, 3) and d.usd == 0.04 for d in drawn)
        assert server.account.requests == 24
        assert set(server.account.drawn.values()) == {1}
        assert {429, 500} <= set(server.account.statuses)
        assert 1 < server.account.most_at_once <= 4


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("7", 7, 7), (None, 3000, 3600), ("soon", 0.5, 0.5)],
    ids=["seconds", "date", "not understood"],
)
def test_the_wait_that_a_server_asks_for_is_kept(said, least, most):
    pauses = []
    said = said or format_datetime(datetime.now(UTC) + timedelta(hours=1))
    with image_server(limited=1, retry_after=said) as server:
        (drawn,) = backend(server, pause=pauses.append).draw(REQUESTS[:1])
    assert drawn.image is not None
    assert least - 1 <= pauses[0] <= most


@pytest.mark.parametrize("said", ["1e9", "inf", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_broken_server_cannot_ask_for_a_longer_pause_than_the_longest(said):
    pauses = []
    with image_server(always=503, retry_after=said) as server, pytest.raises(SegsmithError):
        list(backend(server, retries=3, pause=pauses.append).draw(REQUESTS[:1]))
    assert pauses == [60.0] * 3


def test_a_rate_limit_is_waited_out_beyond_the_number_of_retries():
    with image_server(limited=30, retry_after="20") as server:
        (drawn,) = backend(server, retries=0, pause=lambda seconds: None).draw(REQUESTS[:1])
        assert drawn.image is not None
    with image_server(limited=30, retry_after="200") as server:
        with pytest.raises(SegsmithError, match="rate_limit_wait_s"):
            list(backend(server, pause=lambda seconds: None).draw(REQUESTS[:1]))
        assert server.account.requests == 19  # 18 waits of 200 s are an hour


def test_an_account_without_money_is_not_waited_for():
    with image_server(limited=9, code="insufficient_quota") as server:
        with pytest.raises(SegsmithError, match="top up the account"):
            list(backend(server).draw(REQUESTS[:1]))
        assert server.account.requests == 1


@pytest.mark.parametrize(
    ("usage", "prices", "usd"),
    [
        (
            {"input_tokens": 100, "output_tokens": 2000},
            {"usd_per_million_in": 5, "usd_per_million_out": 30},
            0.0605,
        ),
        ({"input_tokens": 100, "output_tokens": 2000}, {}, 0.04),
        ({"cost": 0.11, "output_tokens": 2000}, {"usd_per_million_out": 30}, 0.11),
        ({"input_tokens": "many", "output_tokens": -1}, {"usd_per_million_out": 30}, 0.04),
        ({}, {"usd_per_million_out": 30}, 0.04),
    ],
    ids=["tokens", "no prices", "stated", "nonsense", "no usage"],
)
def test_an_image_costs_what_the_reply_states(usage, prices, usd):
    with image_server(usage=usage) as server:
        it = backend(server, **prices)
        (drawn,) = it.draw(REQUESTS[:1])
    assert drawn.usd == pytest.approx(usd)
    assert it.usd_per_image == pytest.approx(max(0.04, usd))  # the cap counts with the price that was seen


def test_a_request_is_sent_when_another_one_is_answered():
    with image_server() as server:
        drawing = backend(server, concurrency=2).draw(REQUESTS)
        next(drawing)
        drawing.close()
        assert server.account.requests <= 4


def test_further_fields_are_sent_and_are_part_of_the_name():
    extra = {"num_inference_steps": 8, "guidance_scale": 4.5, "negative_prompt": "blur"}
    with image_server() as server:
        it = backend(server, send_seed=True, extra=extra)
        list(it.draw(REQUESTS[:1]))
        body = server.account.bodies[0]
        assert {key: body[key] for key in extra} == extra
        assert body["seed"] == 0
        assert it.name != backend(server).name == "m@127.0.0.1"


def test_hosted_images_that_cost_money_need_a_cap():
    with pytest.raises(SegsmithError, match=r"no cap is set.*--max-usd"):
        check_hosted(ImagesConfig(backend="hosted", model="m"), api_key="k", max_usd=None)
    own = {"base_url": "http://127.0.0.1:8000/v1"}
    check_hosted(ImagesConfig(backend="hosted", model="m", hosted=own), api_key=None, max_usd=None)


def test_an_image_that_arrived_too_late_is_not_charged_again():
    with image_server(slow=1.0, delay_s=0.8) as server:
        drawn = list(backend(server, timeout_s=0.3).draw(REQUESTS[:2]))
        assert all(d.image is not None for d in drawn)
        assert server.account.requests == 4
        assert set(server.account.drawn.values()) == {1}


def test_refusals_are_reasons_and_free_of_charge():
    with image_server(refusals=1.0) as server:
        (drawn,) = backend(server).draw(REQUESTS[:1])
        assert (drawn.image, drawn.reason, drawn.usd) == (None, "refused", 0.0)
        assert "safety system" in drawn.detail
        assert server.account.requests == 1  # a refusal is an answer and not retried


def test_an_image_by_url():
    with image_server(reply="url") as server:
        (drawn,) = backend(server, reply="url").draw(REQUESTS[:1])
        assert drawn.image.shape == (64, 64, 3)
        assert server.account.bodies[0]["response_format"] == "url"


def test_only_settings_that_are_set_are_sent():
    with image_server() as server:
        list(backend(server).draw(REQUESTS[:1]))
        list(backend(server, quality="low", send_seed=True).draw(REQUESTS[1:2]))
        assert set(server.account.bodies[0]) == {"model", "prompt", "n", "size"}
        assert server.account.bodies[1]["seed"] == 1000
        assert server.account.bodies[1]["quality"] == "low"


def test_after_a_failure_images_that_are_paid_are_still_yielded():
    with image_server(slow=0.4, delay_s=0.2) as server:
        got = []

        def fail_from_now_on(fraction):
            server.behaviour.always = 500

        it = backend(server, retries=0).draw(REQUESTS, on_step=fail_from_now_on)
        with pytest.raises(SegsmithError):
            got.extend(it)
        assert len(got) == sum(server.account.drawn.values())
        assert len(got) < len(REQUESTS)


@pytest.mark.parametrize(
    ("behaviour", "settings", "says"),
    [
        ({"key": "right"}, {"key": "wrong"}, "rejects the key.*OPENAI_API_KEY"),
        ({"always": 500}, {"retries": 1}, "failed"),
        ({"always": 429}, {"rate_limit_wait_s": 0.1}, "limits the number of requests"),
        ({"always": 404}, {}, "has no image model 'm'"),
        ({"always": 400}, {}, "rejects the request"),
        ({"garbage": True}, {}, "without a usable image"),
        ({"slow": 1.0, "delay_s": 0.6}, {"timeout_s": 0.2, "retries": 0}, "took longer than 0.2 s"),
    ],
)
def test_an_error_is_one_line_with_a_remedy(behaviour, settings, says):
    with image_server(**behaviour) as server, pytest.raises(SegsmithError, match=says) as caught:
        list(backend(server, **settings).draw(REQUESTS[:1]))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer():
    with pytest.raises(SegsmithError, match=r"No image server answers at http://127\.0\.0\.1:9/v1"):
        list(backend("http://127.0.0.1:9/v1", retries=0).draw(REQUESTS[:1]))


def test_missing_settings_are_reported_before_anything_starts():
    with pytest.raises(SegsmithError, match=r"need a key.*OPENAI_API_KEY"):
        HostedImages(ImagesConfig(backend="hosted", model="m"), api_key=None)
    with pytest.raises(SegsmithError, match="No image model"):
        HostedImages(ImagesConfig(backend="hosted"), api_key="k")
    with pytest.raises(SegsmithError, match="usd_per_image"):
        check_hosted(ImagesConfig(backend="hosted", model="m"), api_key="k", max_usd=5.0)


# -- servers that must not be trusted ----------------------------------------------------------------


def png(width, height):
    buffer = io.BytesIO()
    PILImage.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) deletefile\n", "not a PNG"),
        (png(13_000, 13_000), "more than 50,000,000 pixels"),
        (b"\0" * (MAX_IMAGE_BYTES + 1), "more than 32 MiB"),
    ],
)
def test_files_that_are_dangerous_to_decode_are_rejected(content, says):
    with image_server(size=64, content=content) as server, pytest.raises(SegsmithError, match=says):
        list(backend(server, retries=0).draw(REQUESTS[:1]))


def test_a_url_inside_the_network_is_not_fetched():
    with image_server() as inside, image_server(reply="url", names=f"{inside.url}/files/x") as server:
        with pytest.raises(SegsmithError, match="inside this network") as caught:
            list(backend(server, reply="url").draw(REQUESTS[:1]))
        assert inside.account.fetched == []
    assert "\n" not in str(caught.value)


def test_a_redirect_into_the_network_is_not_followed():
    with image_server() as inside, image_server(reply="url", redirects=f"{inside.url}/files/x") as server:
        with pytest.raises(SegsmithError, match="inside this network"):
            list(backend(server, reply="url").draw(REQUESTS[:1]))
        assert inside.account.fetched == []
        assert len(server.account.fetched) == 1


def test_the_key_is_not_sent_when_an_image_is_fetched():
    with image_server(reply="url", key="sk-secret") as server:
        list(backend(server, key="sk-secret", reply="url").draw(REQUESTS[:1]))
        assert server.account.fetched == [None]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x.png", "http://[", "not a url", "\x1b[2J"]
)
def test_a_url_that_is_not_http_is_rejected_in_one_printable_line(url):
    with image_server(reply="url", names=url) as server, pytest.raises(SegsmithError) as caught:
        list(backend(server, reply="url", retries=0).draw(REQUESTS[:1]))
    assert str(caught.value).isprintable()


def test_a_key_that_the_server_echoes_is_not_shown():
    with image_server(key="right") as server, pytest.raises(SegsmithError) as caught:
        list(backend(server, key="sk-wrong-key").draw(REQUESTS[:1]))
    assert "sk-wrong-key" not in str(caught.value)
