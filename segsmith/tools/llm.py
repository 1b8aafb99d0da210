"""Every language model through one client: the OpenAI protocol, with replies held to a schema."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ValidationError

from segsmith.config import LLMConfig
from segsmith.errors import SegsmithError
from segsmith.tools.llamacpp import LlamaServer, gguf_path
from segsmith.tools.protocols import BadReply, Reply

OPENAI_URL = "https://api.openai.com/v1"
SEED_LIMIT = 2**31
TRANSPORT_RETRIES = 2
"""Further tries, by the client itself and with growing pauses, when the connection fails or is refused."""


class Usage:
    """What a model was asked and what it cost; safe to share between threads."""

    KEYS = ("calls", "retries", "bad_replies", "prompt_tokens", "completion_tokens")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(self.KEYS, 0)

    def add(self, **counts: int) -> None:
        with self._lock:
            for key, count in counts.items():
                self._counts[key] += count

    def snapshot(self) -> dict[str, int]:
        """A copy, keys as in `KEYS`."""
        with self._lock:
            return dict(self._counts)


class OpenAIChat:
    """A `ChatModel` behind any server that speaks chat completions with ``json_schema`` replies.

    `base_url` may be a function: it is called, once, when the first question is asked. At most
    `config.concurrency` requests are in flight, however many threads ask.
    """

    def __init__(
        self,
        config: LLMConfig,
        base_url: str | Callable[[], str],
        *,
        api_key: str | None = None,
        local: bool = False,
        transport_retries: int = TRANSPORT_RETRIES,
    ) -> None:
        self.name = config.model
        self.concurrency = config.concurrency
        self.usage = Usage()
        self._config = config
        self._base_url = base_url
        self._api_key = api_key
        self._local = local
        self._transport_retries = transport_retries
        self._client: ChatOpenAI | None = None
        self._opening = threading.Lock()
        self._in_flight = threading.BoundedSemaphore(config.concurrency)

    def ask(self, system: str, user: str, schema: type[Reply], *, seed: int) -> Reply:
        """See `ChatModel.ask`. Try n is asked with ``seed + n``."""
        problem: BadReply | None = None
        for attempt in range(1 + self._config.retries):
            self.usage.add(calls=1, retries=int(attempt > 0))
            text = self._complete(system, user, schema, (seed + attempt) % SEED_LIMIT)
            try:
                return parse_reply(text, schema)
            except BadReply as bad:
                self.usage.add(bad_replies=1)
                problem = bad
        raise BadReply(f"{self.name}, {1 + self._config.retries} tries: {problem}")

    def _complete(self, system: str, user: str, schema: type[BaseModel], seed: int) -> str:
        """The text of one reply, valid or not; empty for a refusal."""
        client = self._open()
        asker = client.with_structured_output(
            {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True},
            method="json_schema",
            include_raw=True,
            seed=seed,
        )
        try:
            with self._in_flight:
                message: Any = asker.invoke([("system", system), ("human", user)])
        except openai.LengthFinishReasonError as cut:
            spent = cut.completion.usage
            if spent:
                self._count(spent.prompt_tokens, spent.completion_tokens)
            return cut.completion.choices[0].message.content or ""
        except openai.ContentFilterFinishReasonError:
            return ""
        except openai.APIError as error:
            raise self._explained(error) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # What the client raises on an answer that is no chat completion, such as a web page.
            raise SegsmithError(
                f"{self._url()} does not speak the chat-completions protocol ({type(error).__name__}).",
                "Set llm.base_url to an OpenAI-style URL; it usually ends in /v1.",
            ) from error
        raw = message["raw"]
        tokens = raw.usage_metadata or {}
        self._count(tokens.get("input_tokens", 0), tokens.get("output_tokens", 0))
        return raw.content if isinstance(raw.content, str) else ""

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.usage.add(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def _url(self) -> str:
        return self._base_url if isinstance(self._base_url, str) else self._base_url()

    def _open(self) -> ChatOpenAI:
        with self._opening:
            if self._client is None:
                options: dict[str, Any] = {}
                if self._local:  # a proxy named in the environment must not see, or lose, loopback calls
                    options["http_client"] = openai.DefaultHttpxClient(trust_env=False)
                self._client = ChatOpenAI(
                    model=self._config.model,
                    base_url=self._url(),
                    # Servers without keys want the header all the same.
                    api_key=lambda: self._api_key or "none",
                    temperature=self._config.temperature,
                    max_tokens=self._config.max_tokens,
                    timeout=self._config.timeout_s,
                    max_retries=self._transport_retries,
                    use_responses_api=False,
                    **options,
                )
            return self._client

    def _explained(self, error: openai.APIError) -> SegsmithError:
        url, said = self._url(), _first_line(error)
        if isinstance(error, openai.APITimeoutError):
            return SegsmithError(
                f"The language model at {url} took longer than {self._config.timeout_s:g} s.",
                "Raise llm.timeout_s, or lower llm.concurrency.",
            )
        if isinstance(error, openai.APIConnectionError):
            return SegsmithError(
                f"No language model answers at {url}.",
                "Start the server, or set llm.base_url; then start the same command again.",
            )
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return SegsmithError(f"{url} refuses the key ({said}).", "Set OPENAI_API_KEY to a valid key.")
        if isinstance(error, openai.NotFoundError):
            return SegsmithError(
                f"{url} knows no model {self.name!r} ({said}).", "Set llm.model and llm.base_url."
            )
        if isinstance(error, openai.RateLimitError):
            return SegsmithError(
                f"{url} turns requests away ({said}).",
                "Lower llm.concurrency or wait; then start the same command again.",
            )
        return SegsmithError(
            f"The language model at {url} failed ({said}).",
            "Use a server and a model that take response_format json_schema.",
        )


def parse_reply(text: str, schema: type[Reply]) -> Reply:
    """The reply in `text`: the whole text, or else the first JSON object in it that fits the schema.

    Servers that ignore ``json_schema`` wrap the object in chatter or a code fence. Raises `BadReply`.
    """
    problem = "empty" if not text.strip() else "no JSON object"
    for candidate in json_objects(text):
        try:
            return schema.model_validate(candidate)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'reply'}: {first['msg']}"
    raise BadReply(f"{problem} in {text[:200]!r}")


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The balanced JSON objects in `text`, outermost only, from left to right."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)


def _first_line(error: openai.APIError) -> str:
    lines = str(error.message).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


@contextmanager
def open_chat(config: LLMConfig, api_key: str | None = None) -> Iterator[OpenAIChat]:
    """The chat model of a config; a local server is started at the first question, stopped at the end.

    Raises `SegsmithError` at once when the model file, or a key that the hosted API needs, is missing.
    """
    if config.server == "llamacpp":
        with LlamaServer(gguf_path(config.gguf), slots=config.concurrency) as server:
            yield OpenAIChat(config, lambda: server.base_url, local=True)
        return
    if config.base_url is None and api_key is None:
        raise SegsmithError(
            "The hosted language model needs a key.",
            "Set OPENAI_API_KEY, or set llm.base_url to a server of your own.",
        )
    yield OpenAIChat(config, config.base_url or OPENAI_URL, api_key=api_key)
