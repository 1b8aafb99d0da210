"""Images from a server that offers OpenAI's `images.generate`: hosted OpenAI, or a compatible one."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
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

REFUSALS = ("content_policy", "moderation", "safety", "content_filter")
"""Parts of the error codes with which providers refuse a prompt or an image."""
MAX_IMAGE_BYTES = 32 << 20
"""Largest image file that is accepted."""
MAX_REPLY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + (1 << 20)
"""Largest reply to a request: such an image in base64, and some text."""


class HostedImages:
    """An `ImageBackend` behind HTTP. `hosted.concurrency` requests are in flight, each for one image.

    The client retries with growing pauses, or after the time that ``Retry-After`` states. All tries for one
    image have the same ``Idempotency-Key``, so a server that knows this header charges once. A refused
    request counts as free of charge.
    """

    def __init__(self, config: ImagesConfig, *, api_key: str | None) -> None:
        if not config.model:
            raise SegsmithError("No image model is named.", "Set images.model, e.g. gpt-image-1.")
        if config.hosted.base_url is None and api_key is None:
            raise SegsmithError(
                "Hosted images need a key.",
                "Set OPENAI_API_KEY, or set images.hosted.base_url to your own server.",
            )
        self._config, self._hosted = config, config.hosted
        self._url = config.hosted.base_url or OPENAI_URL
        self.name = f"{config.model}@{urlsplit(self._url).hostname or self._url}"
        self.usd_per_image = config.hosted.usd_per_image or 0.0
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
        """See `ImageBackend.draw`. After a failure no new request is sent, but images under way are yielded."""
        failure: SegsmithError | Cancelled | None = None
        with ThreadPoolExecutor(self._hosted.concurrency) as pool:
            futures = [pool.submit(self._one, index, request) for index, request in enumerate(requests)]
            for done, future in enumerate(as_completed(futures), 1):
                try:
                    yield future.result()
                    on_step(done / len(futures))
                except CancelledError:
                    continue
                except (SegsmithError, Cancelled) as error:
                    failure = failure or error
                    for waiting in futures:
                        waiting.cancel()
        if failure is not None:
            raise failure

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
            reply = self._open().images.generate(
                model=config.model,
                prompt=request.prompt,
                n=1,
                size=hosted.request_size,
                extra_headers={"Idempotency-Key": self._idempotency_key(request)},
                extra_body={"seed": request.seed} if hosted.send_seed else None,
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
        return Drawn(index, self._decoded(self._bytes_of(reply)), usd=self.usd_per_image)

    def _idempotency_key(self, request: ImageRequest) -> str:
        text = f"{self.name}\x1f{request.prompt}\x1f{request.seed}"
        return f"segsmith-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _open(self) -> openai.OpenAI:
        with self._opening:
            if self._client is None:
                limits = ReplyLimits(MAX_REPLY_BYTES, self._hosted.timeout_s)
                self._client = openai.OpenAI(
                    api_key=self._key,
                    max_retries=self._hosted.retries,
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
                f"Lower images.hosted.concurrency, wait, or top up the account; {again}",
            )
        if isinstance(error, openai.BadRequestError):
            return SegsmithError(
                f"{url} rejects the request ({said}).",
                "Set images.hosted.request_size, quality, reply or send_seed to what the model accepts.",
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
    if max_usd is not None and config.hosted.usd_per_image is None:
        raise SegsmithError(
            "budget.max_usd cannot be enforced: the price of an image is unknown.",
            "Set images.hosted.usd_per_image; 0 for your own server.",
        )
