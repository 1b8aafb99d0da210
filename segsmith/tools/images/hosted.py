"""Images from a server that speaks OpenAI's `images.generate`: hosted OpenAI, or any compatible one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
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
from segsmith.protocols import unwatched
from segsmith.types import Drawn, Gate, Image, ImageRequest

OPENAI_URL = "https://api.openai.com/v1"
REFUSALS = ("content_policy", "moderation", "safety", "content_filter")
"""Parts of the error codes with which providers refuse a prompt or a picture."""
LARGEST_REPLY = 64 * 2**20
"""Bytes of one picture fetched by URL at most."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HostedImages:
    """An `ImageBackend` behind HTTP. `hosted.concurrency` requests are in flight; each asks for one picture.

    The client itself tries again, with growing pauses or as long as ``Retry-After`` says. All tries for one
    picture carry the same ``Idempotency-Key``, so that a server that knows it bills once. A refused request
    counts as free of charge.
    """

    def __init__(self, config: ImagesConfig, *, api_key: str | None) -> None:
        if not config.model:
            raise SegsmithError("No image model is named.", "Set images.model, e.g. gpt-image-1.")
        if config.hosted.base_url is None and api_key is None:
            raise SegsmithError(
                "Hosted images need a key.",
                "Set OPENAI_API_KEY, or set images.hosted.base_url to a server of your own.",
            )
        self._config, self._hosted = config, config.hosted
        self._url = config.hosted.base_url or OPENAI_URL
        self.name = f"{config.model}@{urlsplit(self._url).hostname or self._url}"
        self.usd_per_image = config.hosted.usd_per_image or 0.0
        self._key = api_key or "none"  # servers without keys want the header all the same
        self._client: openai.OpenAI | None = None
        self._opening = threading.Lock()

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,  # nothing of a picture is seen before it is finished and paid
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        """See `ImageBackend.draw`. After a failure nothing new is asked, but what is under way is handed over."""
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
                extra_headers={"Idempotency-Key": self._key_of(request)},
                extra_body={"seed": request.seed} if hosted.send_seed else None,
                **{key: value for key, value in options.items() if value is not None},
            )
            data = self._bytes_of(reply)
        except openai.APIError as error:
            if refusal := refused(error):
                return Drawn(index, None, "refused", refusal)
            raise self._explained(error) from None
        return Drawn(index, self._decoded(data), usd=self.usd_per_image)

    def _key_of(self, request: ImageRequest) -> str:
        text = f"{self.name}\x1f{request.prompt}\x1f{request.seed}"
        return f"segsmith-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _open(self) -> openai.OpenAI:
        with self._opening:
            if self._client is None:
                more: dict[str, Any] = {}
                if self._local():  # a proxy named in the environment must not see, or lose, loopback calls
                    more["http_client"] = openai.DefaultHttpxClient(trust_env=False)
                self._client = openai.OpenAI(
                    api_key=self._key,
                    base_url=self._url,
                    timeout=self._hosted.timeout_s,
                    max_retries=self._hosted.retries,
                    **more,
                )
            return self._client

    def _local(self) -> bool:
        return urlsplit(self._url).hostname in LOOPBACK

    def _bytes_of(self, reply: Any) -> bytes:
        """The file in a reply, sent along as base64 or fetched by its URL."""
        items = getattr(reply, "data", None) or [None]
        encoded, url = getattr(items[0], "b64_json", None), getattr(items[0], "url", None)
        if encoded:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise self._no_picture("broken base64") from None
        if not url:
            raise self._no_picture("neither b64_json nor url")
        return self._fetched(str(url))

    def _fetched(self, url: str) -> bytes:
        """The picture is paid for by now, so a bad connection is tried as often as a request."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise self._no_picture(f"the URL {url[:80]!r}")
        transport = httpx.HTTPTransport(retries=self._hosted.retries)
        problem = ""
        with httpx.Client(
            transport=transport,
            timeout=self._hosted.timeout_s,
            follow_redirects=True,
            trust_env=not self._local(),
        ) as client:
            for _ in range(1 + self._hosted.retries):
                try:
                    return self._download(client, url)
                except httpx.HTTPError as error:
                    problem = str(error) or type(error).__name__
        raise SegsmithError(
            f"A picture at {urlsplit(url).hostname} could not be fetched ({problem[:120]}).",
            "Start the same command again, or set images.hosted.reply = 'b64_json'.",
        )

    def _download(self, client: httpx.Client, url: str) -> bytes:
        data = bytearray()
        with client.stream("GET", url) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > LARGEST_REPLY:
                    raise self._no_picture(f"more than {LARGEST_REPLY >> 20} MiB")
        return bytes(data)

    def _decoded(self, data: bytes) -> Image:
        """The middle square of the picture, at the size of the run."""
        try:
            with PILImage.open(io.BytesIO(data)) as picture:
                whole = picture.convert("RGB")
        except (OSError, ValueError, PILImage.DecompressionBombError):
            raise self._no_picture(f"{len(data)} bytes that are no picture") from None
        side = min(whole.size)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        square = whole.crop((left, top, left + side, top + side))
        if side != self._config.size:
            square = square.resize((self._config.size,) * 2, PILImage.Resampling.LANCZOS)
        return np.asarray(square)

    def _no_picture(self, got: str) -> SegsmithError:
        return SegsmithError(
            f"The image server at {self._url} answered without a picture ({got}).",
            "Set images.hosted.base_url to a server that speaks OpenAI's images.generate; it usually ends in /v1.",
        )

    def _explained(self, error: openai.APIError) -> SegsmithError:
        url, said = self._url, _first_line(error)
        again = "then start the same command again; what is drawn stays."
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
            return SegsmithError(f"{url} refuses the key ({said}).", "Set OPENAI_API_KEY to a valid key.")
        if isinstance(error, openai.NotFoundError):
            return SegsmithError(
                f"{url} knows no image model {self._config.model!r} ({said}).",
                "Set images.model and images.hosted.base_url.",
            )
        if isinstance(error, openai.RateLimitError):
            return SegsmithError(
                f"{url} turns requests away ({said}).",
                f"Lower images.hosted.concurrency, wait, or top up the account; {again}",
            )
        if isinstance(error, openai.BadRequestError):
            return SegsmithError(
                f"{url} does not take the request ({said}).",
                "Set images.hosted.request_size, quality, reply or send_seed to what the model takes.",
            )
        return SegsmithError(f"The image server at {url} failed ({said}).", f"Wait, {again}")


def check_hosted(config: ImagesConfig, *, api_key: str | None, max_usd: float | None) -> None:
    """Raise `SegsmithError` for what is missing before a run starts; nothing is asked of the server."""
    HostedImages(config, api_key=api_key)
    if max_usd is not None and config.hosted.usd_per_image is None:
        raise SegsmithError(
            "budget.max_usd cannot be held: what a picture costs is not known.",
            "Set images.hosted.usd_per_image; 0 for a server of your own.",
        )


def refused(error: openai.APIError) -> str:
    """The provider's words when it refused the content, else ""."""
    if not isinstance(error, openai.BadRequestError | openai.PermissionDeniedError):
        return ""
    marks = f"{error.code or ''} {error.type or ''}".lower()
    return _first_line(error) if any(part in marks for part in REFUSALS) else ""


def _first_line(error: openai.APIError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or error.message).strip()
    return (said.splitlines() or [type(error).__name__])[0][:160]
