"""Images from a server that offers OpenAI's `images.generate`: hosted OpenAI, or a compatible one."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
from PIL import Image as PILImage

from segsmith.config import ImagesConfig
from segsmith.errors import Cancelled, SegsmithError
from segsmith.files import UnreadableImage, open_image
from segsmith.protocols import unwatched
from segsmith.terminal_text import first_line
from segsmith.tools.http import (
    MALFORMED_REPLY,
    NO_KEY,
    ReplyLimits,
    ReplyRejected,
    limited_client,
    openai_options,
)
from segsmith.tools.weights.catalogue import OPENAI_URL
from segsmith.types import Drawn, Gate, Image, ImageRequest

logger = logging.getLogger(__name__)

QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_limit")
"""Parts of the error codes of an account without money, for which waiting does not help."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""Pauses between tries double from the first to the longest where the server does not say how long to wait.
A server that fails is never waited for longer than the longest, whatever it says; one that limits requests may be."""
REFUSALS = ("content_policy", "moderation", "safety", "content_filter")
"""Parts of the error codes with which providers refuse a prompt or an image."""
MAX_IMAGE_BYTES = 32 << 20
"""Largest image file that is accepted."""
MAX_REPLY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + (1 << 20)
"""Largest reply to a request: such an image in base64, and some text."""


class HostedImages:
    """An `ImageBackend` behind HTTP. `hosted.concurrency` requests are in flight, each for one image.

    Tries that failed are repeated after growing pauses, or after the time that ``Retry-After`` states; while the
    server limits the number of requests, all of them pause, for up to an hour (`rate_limit_wait_s`). All tries for
    one image have the same ``Idempotency-Key``, so a server that knows this header charges once. A refused request
    counts as free of charge. An image costs what the reply states, else `usd_per_image`.
    """

    def __init__(
        self, config: ImagesConfig, *, api_key: str | None, pause: Callable[[float], object] | None = None
    ) -> None:
        """`pause` replaces waiting; it is called with seconds and returns whether the backend was stopped."""
        if not config.model:
            raise SegsmithError("No image model is named.", "Set images.model, e.g. gpt-image-2.")
        if config.hosted.base_url is None and api_key is None:
            raise SegsmithError(
                "Hosted images need a key.",
                "Set OPENAI_API_KEY, or set images.hosted.base_url to your own server.",
            )
        self._config, self._hosted = config, config.hosted
        self._url = config.hosted.base_url or OPENAI_URL
        self.name = f"{config.model}@{urlsplit(self._url).hostname or self._url}"
        if config.hosted.extra:  # fields that change the images; without them the name is the one of before
            fields = json.dumps(config.hosted.extra, sort_keys=True)
            self.name += f"/{hashlib.sha256(fields.encode()).hexdigest()[:8]}"
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        self._limited_until = 0.0
        self._highest_usd = config.hosted.usd_per_image or 0.0
        self._key = api_key or NO_KEY
        self._client: openai.OpenAI | None = None
        self._opening = threading.Lock()
        self._decoding = threading.Lock()

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,  # unused: there is no preview of an image before it is complete and paid
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        """See `ImageBackend.draw`. After a failure no new request is sent, but images under way are yielded.

        A request is sent when another one is answered, so no more than `concurrency` images are paid for when the
        caller stops iterating.
        """
        failure: SegsmithError | Cancelled | None = None
        todo = iter(enumerate(requests))
        running: set[Future[Drawn]] = set()
        done = 0
        self._stopped.clear()
        with ThreadPoolExecutor(self._hosted.concurrency) as pool:
            try:
                while True:
                    while failure is None and len(running) < self._hosted.concurrency:
                        following = next(todo, None)
                        if following is None:
                            break
                        running.add(pool.submit(self._one, *following))
                    if not running:
                        break
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        try:
                            yield future.result()
                            done += 1
                            on_step(done / len(requests))
                        except (SegsmithError, Cancelled) as error:
                            failure = failure or error
                            self._stopped.set()  # ends the pauses of the others
            finally:
                self._stopped.set()
        if failure is not None:
            raise failure

    @property
    def usd_per_image(self) -> float:
        """The price in the settings, or the highest that a reply has stated if that is more."""
        return self._highest_usd

    def close(self) -> None:
        """Close the connections."""
        with self._opening:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _one(self, index: int, request: ImageRequest) -> Drawn:
        config, hosted = self._config, self._hosted
        options: dict[str, Any] = {"quality": hosted.quality, "response_format": hosted.reply}
        try:
            reply = self._answered(
                request,
                model=config.model,
                prompt=request.prompt,
                n=1,
                size=hosted.request_size,
                extra_headers={"Idempotency-Key": self._idempotency_key(request)},
                extra_body={**({"seed": request.seed} if hosted.send_seed else {}), **hosted.extra} or None,
                **{key: value for key, value in options.items() if value is not None},
            )
        except openai.APIError as error:
            if isinstance(error.__cause__, ReplyRejected):
                raise self._without_image(str(error.__cause__)) from None
            if refusal := self._refusal(error):
                return Drawn(index, None, "refused", refusal)
            raise self._explained(error) from None
        except ReplyRejected as error:
            raise self._without_image(str(error)) from None
        except (openai.OpenAIError, *MALFORMED_REPLY):
            raise self._without_image("no JSON object that could be read") from None
        usd = self._cost_of(reply)
        return Drawn(index, self._decoded(self._bytes_of(reply)), usd=usd)

    def _answered(self, request: ImageRequest, **arguments: Any) -> Any:
        """The reply to a request, tried again where that may help; raises the error of the last try."""
        failures, limits, waited = 0, 0, 0.0
        while True:
            self._wait_for_limit()
            try:
                return self._open().images.generate(**arguments)
            except openai.RateLimitError as error:
                limits += 1
                seconds = _retry_after(error) or _growing(limits)
                waited += seconds
                marks = f"{error.code or ''} {error.type or ''}"
                if any(code in marks for code in QUOTA_CODES) or waited > self._hosted.rate_limit_wait_s:
                    raise
                logger.warning("%s limits the number of requests: waiting %.0f s", self._url, seconds)
                self._limited_until = max(self._limited_until, time.monotonic() + seconds)
                self._pause_or_raise(seconds, error)
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                failures += 1
                if failures > self._hosted.retries or isinstance(error.__cause__, ReplyRejected):
                    raise
                seconds = _retry_after(error) or _growing(failures)
                self._pause_or_raise(min(LONGEST_PAUSE_S, seconds), error)

    def _wait_for_limit(self) -> None:
        left = self._limited_until - time.monotonic()
        if left > 0:
            self._pause(left)

    def _pause_or_raise(self, seconds: float, error: openai.APIError) -> None:
        if self._pause(seconds):  # another request failed, or the caller stopped iterating
            raise error

    def _cost_of(self, reply: Any) -> float:
        """US dollars of a reply: its own statement, its tokens at the prices in the settings, or the set price."""
        hosted, usage = self._hosted, getattr(reply, "usage", None)
        stated = _amount(getattr(usage, "cost", None))
        sent, drawn = (
            _amount(getattr(usage, "input_tokens", None)),
            _amount(getattr(usage, "output_tokens", None)),
        )
        if stated is None and drawn is not None and hosted.usd_per_million_out is not None:
            stated = (
                drawn * hosted.usd_per_million_out + (sent or 0) * (hosted.usd_per_million_in or 0)
            ) / 1e6
        if stated is None:
            return hosted.usd_per_image or 0.0
        self._highest_usd = max(self._highest_usd, stated)
        return stated

    def _idempotency_key(self, request: ImageRequest) -> str:
        text = f"{self.name}\x1f{request.prompt}\x1f{request.seed}"
        return f"segsmith-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _open(self) -> openai.OpenAI:
        with self._opening:
            if self._client is None:
                limits = ReplyLimits(MAX_REPLY_BYTES, self._hosted.timeout_s)
                self._client = openai.OpenAI(
                    api_key=self._key,
                    max_retries=0,  # `_answered` tries again
                    **openai_options(self._url, limits),
                )
            return self._client

    # -- the image in a reply -------------------------------------------------------------------------

    def _bytes_of(self, reply: Any) -> bytes:
        """The image file in a reply, sent as base64 or named by its URL. The client does not check types."""
        items = getattr(reply, "data", None)
        item = items[0] if isinstance(items, list) and items else None
        encoded, url = getattr(item, "b64_json", None), getattr(item, "url", None)
        if encoded and isinstance(encoded, str):
            try:
                return base64.b64decode(encoded, validate=True)
            except ValueError:
                raise self._without_image("broken base64") from None
        if not url or not isinstance(url, str):
            raise self._without_image("neither b64_json nor url")
        return self._fetched(url)

    def _fetched(self, url: str) -> bytes:
        """The file behind a URL that the server named. It is paid for, so a bad connection is retried as well.

        The key is not sent. No proxy is used: it could reach addresses that this machine must not ask for.
        """
        limits = ReplyLimits(MAX_IMAGE_BYTES, self._hosted.timeout_s, is_json=False)
        problem = ""
        with limited_client(self._url, limits, retries=self._hosted.retries, proxies=False) as client:
            for _ in range(1 + self._hosted.retries):
                try:
                    return client.get(url).raise_for_status().content
                except ReplyRejected as error:
                    raise self._without_image(f"its URL was rejected: {error}") from None
                except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError):
                    raise self._without_image(f"not a URL of an image: {first_line(url, 80)!r}") from None
                except httpx.HTTPError as error:
                    problem = first_line(error, 120)
        raise SegsmithError(
            f"The image at {first_line(httpx.URL(url).host, 80)} could not be downloaded ({problem}).",
            "Rerun the same command, or set images.hosted.reply = 'b64_json'.",
        )

    def _decoded(self, data: bytes) -> Image:
        """The central square of the image, at the size of the run."""
        if len(data) > MAX_IMAGE_BYTES:
            raise self._without_image(f"more than {MAX_IMAGE_BYTES >> 20} MiB")
        with self._decoding:  # one at a time, which bounds the memory that large images take
            try:
                pixels = open_image(data).pixels
            except UnreadableImage as error:
                raise self._without_image(f"{len(data)} bytes; {first_line(error)}") from None
            side = min(pixels.shape[:2])
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            square = PILImage.fromarray(pixels[top : top + side, left : left + side])
            if side != self._config.size:
                square = square.resize((self._config.size,) * 2, PILImage.Resampling.LANCZOS)
            return np.asarray(square)

    # -- errors ---------------------------------------------------------------------------------------

    def _without_image(self, got: str) -> SegsmithError:
        return SegsmithError(
            f"The image server at {self._url} answered without a usable image ({got}).",
            "Set images.hosted.base_url to a server that offers OpenAI's images.generate; it usually ends in /v1.",
        )

    def _explained(self, error: openai.APIError) -> SegsmithError:
        url, said = self._url, self._said(error)
        again = "then rerun the same command; images drawn so far are kept."
        if isinstance(error, openai.APITimeoutError):
            return SegsmithError(
                f"The image server at {url} took longer than {self._hosted.timeout_s:g} s, "
                f"{1 + self._hosted.retries} times.",
                f"Raise images.hosted.timeout_s, or lower images.hosted.concurrency; {again}",
            )
        if isinstance(error, openai.APIConnectionError):
            return SegsmithError(
                f"No image server answers at {url}.", f"Start it, or set images.hosted.base_url; {again}"
            )
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return SegsmithError(f"{url} rejects the key ({said}).", "Set OPENAI_API_KEY to a valid key.")
        if isinstance(error, openai.NotFoundError):
            return SegsmithError(
                f"{url} has no image model {self._config.model!r} ({said}).",
                "Set images.model and images.hosted.base_url.",
            )
        if isinstance(error, openai.RateLimitError):
            return SegsmithError(
                f"{url} limits the number of requests ({said}).",
                "Lower images.hosted.concurrency, raise images.hosted.rate_limit_wait_s, or top up the account; "
                f"{again}",
            )
        if isinstance(error, openai.BadRequestError):
            return SegsmithError(
                f"{url} rejects the request ({said}).",
                "Set images.hosted.request_size, quality, reply, send_seed or extra to what the model accepts.",
            )
        return SegsmithError(f"The image server at {url} failed ({said}).", f"Wait, {again}")

    def _refusal(self, error: openai.APIError) -> str:
        """The provider's explanation if it refused the content, else ""."""
        if not isinstance(error, openai.BadRequestError | openai.PermissionDeniedError):
            return ""
        marks = f"{error.code or ''} {error.type or ''}".lower()
        return self._said(error) if any(part in marks for part in REFUSALS) else ""

    def _said(self, error: openai.APIError) -> str:
        """The server's own words, as far as an error quotes them, without the key that some servers echo."""
        body = error.body if isinstance(error.body, dict) else {}
        text = str(body.get("message") or error.message or type(error).__name__)
        return first_line(text.replace(self._key, "***") if self._key != NO_KEY else text)


def check_hosted(config: ImagesConfig, *, api_key: str | None, max_usd: float | None) -> None:
    """Raise `SegsmithError` for a missing setting before a run starts; no request is sent."""
    HostedImages(config, api_key=api_key)
    if max_usd is None and config.hosted.base_url is None:
        raise SegsmithError(
            "Hosted images cost money, and no cap is set.",
            "Type e.g. --max-usd 10; `segsmith plan` estimates the cost.",
        )
    if max_usd is not None and config.hosted.usd_per_image is None:
        raise SegsmithError(
            "budget.max_usd cannot be enforced: the price of an image is unknown.",
            "Set images.hosted.usd_per_image; 0 for your own server.",
        )


def _retry_after(error: openai.APIError) -> float | None:
    """Seconds that the server asks to wait, stated as a number or as a date; None if it does not say."""
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    text = str(headers.get("Retry-After") or "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, (moment - datetime.now(moment.tzinfo or UTC)).total_seconds())


def _growing(tries: int) -> float:
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (tries - 1))


def _amount(value: Any) -> float | None:
    """A count or price as a server states it; None for anything else."""
    plausible = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return float(value) if plausible else None
