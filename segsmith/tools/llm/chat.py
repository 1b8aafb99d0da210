"""Every language model through one client: the OpenAI protocol, with replies validated against a schema."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import openai
from langchain_openai import ChatOpenAI
from PIL import Image as PILImage
from pydantic import BaseModel

from segsmith.config import LLMConfig
from segsmith.errors import BadReply, SegsmithError
from segsmith.files import image_bytes
from segsmith.prompts import fill
from segsmith.protocols import Reply
from segsmith.terminal_text import printable
from segsmith.tools.http import MALFORMED_REPLY, NO_KEY, ReplyLimits, ReplyRejected, openai_options
from segsmith.tools.llm.balanced import BalancedServers, answers
from segsmith.tools.llm.endpoint import (
    MAX_REPLY_BYTES,
    ChatServer,
    Endpoint,
    RemoteServer,
    connect,
    explained,
    rejected,
)
from segsmith.tools.llm.json_reply import parse_reply
from segsmith.tools.llm.llamacpp import check_llama, llama_server
from segsmith.tools.llm.local_server import LocalServer
from segsmith.tools.llm.response_format import Constraint, ResponseFormat, schema_text
from segsmith.tools.llm.usage import Spent, Usage, tokens
from segsmith.tools.llm.vllm import check_vllm, vllm_server
from segsmith.tools.weights.catalogue import OPENAI_URL
from segsmith.types import Image

SEED_LIMIT = 2**31
TRANSPORT_RETRIES = 4
"""Retries by the client, with growing pauses, when the connection fails, or on 408, 409, 429 and 5xx."""
LOCAL_TRANSPORT_RETRIES = 1
"""The same for a server that segsmith started: if it is dead it is restarted, and waiting does not help."""
QUOTED = 400
"""Characters of a bad reply that the model is shown in the next request."""
STRAY_REPLIES = 3
"""Consecutive replies without an object after which the server is known not to follow the schema."""
CHECK_TRIES = 3
CHECK_TIMEOUT_S = 20.0
NAMES_SHOWN = 5
MAX_IMAGE_PX = 768
"""Longer side of an image that is sent; more is billed as several tiles."""
IMAGE_QUALITY = 90

Content = str | list[str | dict[Any, Any]]
"""Text, or a text part followed by image parts, as the protocol has them."""
Messages = list[tuple[str, Content]]


class BudgetSpent(BadReply):
    """No request was sent: the budget of this run is spent."""

    reason = "budget_spent"


class OpenAIChat:
    """A `ChatModel` behind any server that offers chat completions.

    At most `config.concurrency` requests are in flight, however many threads call `ask`. `note` is called with
    what each question took. Once `usd_left` returns nothing, no request is sent; those in flight are paid. A schema
    is conveyed as `constraint` says, or in a simpler way where the server rejects that.
    """

    def __init__(
        self,
        config: LLMConfig,
        server: ChatServer,
        *,
        note: Callable[[Spent], None] | None = None,
        usd_left: Callable[[], float] | None = None,
        transport_retries: int = TRANSPORT_RETRIES,
        constraint: Constraint = "schema",
    ) -> None:
        self.name = config.model
        self.concurrency = config.concurrency
        self.usage = Usage(note)
        self._config = config
        self._server = server
        self._usd_left = usd_left
        self._transport_retries = transport_retries
        self._clients: dict[tuple[Endpoint, bool], ChatOpenAI] = {}
        self._opening = threading.Lock()
        self._in_flight = threading.BoundedSemaphore(config.concurrency)
        self._format = ResponseFormat(constraint)
        self._stray = 0
        self._understood = False

    @property
    def restarts(self) -> int:
        """How often a local server had to be restarted."""
        return self._server.restarts if isinstance(self._server, LocalServer) else 0

    def start(self) -> None:
        """Start a local server now, while nothing else allocates on its GPU; does nothing for a server that runs."""
        self._server.endpoint()

    def release(self) -> None:
        """Stop a local server, so that its memory is free; the next question starts it again."""
        if isinstance(self._server, LocalServer):
            self._server.release()

    def ask(
        self, system: str, user: str, schema: type[Reply], *, seed: int, images: Sequence[Image] = ()
    ) -> Reply:
        """See `ChatModel.ask`. Try n has the seed ``seed + n`` and states what was wrong with try n - 1.

        Raises `BudgetSpent` instead of sending a request when no money is left.
        """
        spent = Spent()
        try:
            return self._ask(system, user_message(user, images), schema, seed, spent)
        finally:
            self.usage.add(spent)

    def _ask(self, system: str, user: Content, schema: type[Reply], seed: int, spent: Spent) -> Reply:
        problem: BadReply | None = None
        repair: Messages = []
        for attempt in range(1 + self._config.retries):
            if self._usd_left is not None and self._usd_left() <= spent.usd:
                raise BudgetSpent("the budget of this run is spent")
            spent.retries += int(attempt > 0)
            text = ""
            try:
                text = self._reply(
                    [("human", user), *repair], system, schema, (seed + attempt) % SEED_LIMIT, spent
                )
                return parse_reply(text, schema)
            except BadReply as bad:
                spent.bad_replies += 1
                problem = bad
                repair = _repair(text, bad, schema)
        raise BadReply(f"{self.name}, {1 + self._config.retries} tries: {problem}")

    def _reply(self, talk: Messages, system: str, schema: type[BaseModel], seed: int, spent: Spent) -> str:
        """One reply, in the strictest format the server accepts.

        Raises `BadReply` if the answer is not a chat completion.
        """
        form, objection = self._format, None
        while True:
            messages = [("system", form.system(system, schema)), *talk]
            try:
                text = self._send(messages, form, schema, seed, spent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                objection = objection or error
                simpler = form.simpler(str(error.message))
                if simpler is None:
                    raise self._explained(objection) from None
                form = simpler
                continue
            self._learn(form, text)
            return text

    def _learn(self, form: ResponseFormat, text: str) -> None:
        """Remember what the server accepts; stop relying on its schema support if it writes prose all the same."""
        stray = form.enforces_schema and bool(text.strip()) and not text.lstrip().startswith("{")
        self._stray = self._stray + 1 if stray else 0
        self._format = form.with_schema_in_prompt() if self._stray >= STRAY_REPLIES else form

    def _send(
        self, messages: Messages, form: ResponseFormat, schema: type[BaseModel], seed: int, spent: Spent
    ) -> str:
        """The text of one reply, valid or not; empty for a refusal. A local server that died is restarted."""
        parameters = form.parameters(schema, seed)
        prompt = "".join(text_of(content) for _, content in messages)
        images = sum(len(content) - 1 for _, content in messages if not isinstance(content, str))
        while True:
            where = self._server.endpoint()
            client = self._client(where, "temperature" not in form.omitted)
            spent.calls += 1
            try:
                with self._in_flight, self._server.during(where):
                    message: Any = client.invoke(messages, **parameters)
                usage = message.usage_metadata or {}
                text = message.content if isinstance(message.content, str) else ""
                stated = usage.get("input_tokens"), usage.get("output_tokens")
                self._count(spent, prompt, text, *stated, images=images)
            except openai.LengthFinishReasonError as cut:
                text = self._cut_reply(cut.completion, prompt, spent, images)
            except openai.ContentFilterFinishReasonError:
                text = ""
                self._count(spent, prompt, text, images=images)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                raise
            except (openai.APIResponseValidationError, *MALFORMED_REPLY) as error:
                self._count(spent, prompt, "", images=images)
                raise self._misunderstood(error) from None
            except (openai.APIError, ReplyRejected) as error:
                if rejected(error) is not None:
                    self._count(spent, prompt, "", images=images)
                    raise self._misunderstood(error) from None
                if isinstance(error, openai.APIConnectionError) and self._server.revive(where):
                    continue
                raise explained(error, where, self.name, self._config.timeout_s) from None
            self._understood = True
            return text

    def _count(
        self,
        spent: Spent,
        prompt: str,
        text: str,
        stated_in: object = None,
        stated_out: object = None,
        *,
        images: int,
    ) -> None:
        spent.add_tokens(self._config, tokens(stated_in, prompt, images), tokens(stated_out, text))

    def _cut_reply(self, completion: Any, prompt: str, spent: Spent, images: int) -> str:
        """The text of a reply that ended at the token limit."""
        try:
            text = completion.choices[0].message.content
        except MALFORMED_REPLY:
            text = ""
        text = text if isinstance(text, str) else ""
        usage = getattr(completion, "usage", None)
        stated = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
        self._count(spent, prompt, text, *stated, images=images)
        return text

    def _client(self, where: Endpoint, with_temperature: bool) -> ChatOpenAI:
        with self._opening:
            key = (where, with_temperature)
            if key not in self._clients:
                self._clients[key] = ChatOpenAI(
                    model=self._config.model,
                    api_key=lambda: where.api_key or NO_KEY,
                    temperature=self._config.temperature if with_temperature else None,
                    max_tokens=self._config.max_tokens,
                    max_retries=self._transport_retries,
                    use_responses_api=False,
                    **openai_options(where.base_url, ReplyLimits(MAX_REPLY_BYTES, self._config.timeout_s)),
                )
            return self._clients[key]

    def _misunderstood(self, error: Exception) -> Exception:
        """Garbage from a server that made sense before is a bad reply; from one that never did, the wrong URL."""
        if not self._understood:
            return self._explained(error)
        return BadReply(str(rejected(error) or "not a chat completion"))

    def _explained(self, error: Exception) -> SegsmithError:
        return explained(error, self._server.endpoint(), self.name, self._config.timeout_s)


def user_message(text: str, images: Sequence[Image]) -> Content:
    """The content of a user's message; images are JPEG files in data URLs, at most `MAX_IMAGE_PX` wide and high."""
    if not images:
        return text
    parts: list[str | dict[Any, Any]] = [{"type": "text", "text": text}]
    for pixels in images:
        image = PILImage.fromarray(pixels)
        image.thumbnail((MAX_IMAGE_PX, MAX_IMAGE_PX))
        file = image_bytes(np.asarray(image), "jpeg", IMAGE_QUALITY)
        url = f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def text_of(content: Content) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else str(content[0]["text"])  # type: ignore[index]


def _repair(text: str, bad: BadReply, schema: type[BaseModel]) -> Messages:
    """What is added to the conversation after a bad reply."""
    problem = str(bad).split(" in '", 1)[0]
    answer = [("ai", text[:QUOTED])] if text.strip() else []
    return [*answer, ("human", fill("repair", problem=problem, schema=schema_text(schema)))]


@contextmanager
def open_chat(
    config: LLMConfig,
    api_key: str | None = None,
    *,
    log: Path | None = None,
    note: Callable[[Spent], None] | None = None,
    usd_left: Callable[[], float] | None = None,
    restarting: Callable[[], AbstractContextManager[None]] = nullcontext,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[OpenAIChat]:
    """The chat model of a config; a local server is started at the first question and stopped at the end.

    A local server's output is appended to `log`. `restarting` is entered while a vLLM that died starts again, and
    `tell` is called when one of several servers is left out or taken back. Raises `SegsmithError` at once if the
    model file, the program, or a key that the hosted API needs is missing.
    """
    if config.server == "openai":
        servers = _remote(config, api_key)
        if len(servers) == 1:
            yield OpenAIChat(config, RemoteServer(servers[0]), note=note, usd_left=usd_left)
            return
        with closing(BalancedServers(servers, tell)) as balanced:
            yield OpenAIChat(config, balanced, note=note, usd_left=usd_left)
        return
    with_llama = config.server == "llamacpp"
    local = llama_server(config, log) if with_llama else vllm_server(config, log, restarting)
    with local as server:
        yield OpenAIChat(
            config,
            server,
            note=note,
            usd_left=usd_left,
            transport_retries=LOCAL_TRANSPORT_RETRIES,
            constraint="grammar" if with_llama else "schema",
        )


def check_llm(config: LLMConfig, api_key: str | None = None) -> None:
    """Find out before a run starts what is wrong with the language model of a config.

    No local server is started: only its program and model file are checked. A URL is asked for its list of
    models and, if the name is not in it, for a reply of a few tokens; of several URLs, those that answer. Raises
    `SegsmithError`.
    """
    if config.server == "llamacpp":
        check_llama(config)
    elif config.server == "vllm":
        check_vllm(config)
    else:
        servers = _remote(config, api_key)
        # One that is down is left out when the run starts, and taken back when it is up.
        alive = [where for where in servers if answers(where)] if len(servers) > 1 else servers
        for where in alive or servers[:1]:
            _check_url(config, where)


def _remote(config: LLMConfig, api_key: str | None) -> list[Endpoint]:
    if config.base_url is None and api_key is None:
        raise SegsmithError(
            "The hosted language model needs a key.",
            "Set OPENAI_API_KEY, or set llm.base_url to your own server.",
        )
    return [Endpoint(url, api_key) for url in config.base_urls or (OPENAI_URL,)]


def _check_url(config: LLMConfig, where: Endpoint) -> None:
    timeout_s = min(config.timeout_s, CHECK_TIMEOUT_S)
    client = connect(where, timeout_s, retries=CHECK_TRIES)
    listed: Sequence[str] = ()
    problem: Exception | None = None
    for _ in range(CHECK_TRIES):
        try:
            listed = listed or _listed_models(client)
            if config.model not in listed:
                _try_model(client, config.model)
            return
        except openai.NotFoundError as error:
            complaint = explained(error, where, config.model, timeout_s)
            others = f" It has: {', '.join(listed[:NAMES_SHOWN])}." if listed else ""
            raise SegsmithError(complaint.message, f"{complaint.remedy}{others}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            raise explained(error, where, config.model, timeout_s) from None
        except openai.APIStatusError:
            return  # it is there and busy, or rejects this request: the run will show
        except (openai.OpenAIError, ReplyRejected, *MALFORMED_REPLY) as error:
            problem = error
    if problem is not None:
        raise explained(problem, where, config.model, timeout_s) from None


def _listed_models(client: openai.OpenAI) -> list[str]:
    """Model names; empty if the server has no list."""
    try:
        return [printable(str(model.id)) for model in client.models.list()]
    except openai.NotFoundError:
        return []


def _try_model(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say yes."}], max_tokens=16
    )
    if not reply.choices:
        raise ValueError("no choices")
