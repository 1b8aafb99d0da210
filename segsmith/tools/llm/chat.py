"""Every language model through one client: the OpenAI protocol, with replies held to a schema."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from segsmith.config import LLMConfig
from segsmith.errors import BadReply, SegsmithError
from segsmith.prompts import fill
from segsmith.protocols import Reply
from segsmith.terminal_text import printable
from segsmith.tools.llm.endpoint import (
    NO_KEY,
    ChatServer,
    Endpoint,
    RemoteServer,
    client_options,
    connect,
)
from segsmith.tools.llm.errors import explained
from segsmith.tools.llm.json_reply import parse_reply
from segsmith.tools.llm.llamacpp import check_llama, llama_server
from segsmith.tools.llm.local_server import LocalServer
from segsmith.tools.llm.response_format import Dialect, schema_text
from segsmith.tools.llm.usage import Spent, Usage
from segsmith.tools.llm.vllm import check_vllm, vllm_server

OPENAI_URL = "https://api.openai.com/v1"
SEED_LIMIT = 2**31
TRANSPORT_RETRIES = 4
"""Further tries, by the client and with growing pauses, when the connection fails, or on 408, 409, 429 and 5xx."""
LOCAL_TRANSPORT_RETRIES = 1
"""The same for a server of our own: when it is dead it is restarted, and waiting does not help."""
ECHO = 400
"""Characters of a bad reply that the model is shown when it is asked again."""
STRAY_REPLIES = 3
"""So many replies in a row without an object: the server does not follow the schema it was sent."""
CHECK_TRIES = 3
CHECK_TIMEOUT_S = 20.0

Messages = list[tuple[str, str]]
NOT_THE_PROTOCOL = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What the client raises on an answer that is no chat completion, such as a web page or half of one."""


class BudgetSpent(BadReply):
    """Nothing was asked: the money of this run is spent."""

    reason = "budget_spent"


class OpenAIChat:
    """A `ChatModel` behind any server that speaks chat completions.

    At most `config.concurrency` requests are in flight, however many threads ask. `note` is told what each
    question took; while `usd_left` says nothing is left, no question is asked (those in flight are paid).
    """

    def __init__(
        self,
        config: LLMConfig,
        server: ChatServer,
        *,
        note: Callable[[Spent], None] | None = None,
        usd_left: Callable[[], float] | None = None,
        transport_retries: int = TRANSPORT_RETRIES,
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
        self._dialect = Dialect()
        self._stray = 0
        self._understood = False

    @property
    def restarts(self) -> int:
        """How often a server of our own had to be started again."""
        return self._server.restarts if isinstance(self._server, LocalServer) else 0

    def ask(self, system: str, user: str, schema: type[Reply], *, seed: int) -> Reply:
        """See `ChatModel.ask`. Try n is asked with ``seed + n``, and is told what was wrong with the one before.

        Raises `BudgetSpent` instead of asking when no money is left.
        """
        spent = Spent()
        try:
            return self._ask(system, user, schema, seed, spent)
        finally:
            self.usage.add(spent)

    def _ask(self, system: str, user: str, schema: type[Reply], seed: int, spent: Spent) -> Reply:
        problem: BadReply | None = None
        again: Messages = []
        for attempt in range(1 + self._config.retries):
            if self._usd_left is not None and self._usd_left() <= spent.usd:
                raise BudgetSpent("the money of this run is spent")
            spent.retries += int(attempt > 0)
            said = ""
            try:
                said = self._say(
                    [("human", user), *again], system, schema, (seed + attempt) % SEED_LIMIT, spent
                )
                return parse_reply(said, schema)
            except BadReply as bad:
                spent.bad_replies += 1
                problem = bad
                again = _repair(said, bad, schema)
        raise BadReply(f"{self.name}, {1 + self._config.retries} tries: {problem}")

    def _say(self, talk: Messages, system: str, schema: type[BaseModel], seed: int, spent: Spent) -> str:
        """One reply, in the best dialect the server takes. Raises `BadReply` when it is no chat completion."""
        dialect, objection = self._dialect, None
        while True:
            messages = [("system", dialect.system(system, schema)), *talk]
            try:
                text = self._send(messages, dialect, schema, seed, spent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                objection = objection or error
                simpler = dialect.simpler(str(error.message))
                if simpler is None:
                    raise self._explained(objection) from None
                dialect = simpler
                continue
            self._learn(dialect, text)
            return text

    def _learn(self, dialect: Dialect, text: str) -> None:
        """Remember what the server took; give up on schemas where it writes prose in spite of them."""
        stray = dialect.holds_to_schema and bool(text.strip()) and not text.lstrip().startswith("{")
        self._stray = self._stray + 1 if stray else 0
        self._dialect = dialect.told() if self._stray >= STRAY_REPLIES else dialect

    def _send(
        self, messages: Messages, dialect: Dialect, schema: type[BaseModel], seed: int, spent: Spent
    ) -> str:
        """The text of one reply, valid or not; empty for a refusal. A dead server of our own is restarted."""
        parameters = dialect.parameters(schema, seed)
        while True:
            where = self._server.endpoint()
            asker = self._client(where, "temperature" not in dialect.left_out)
            spent.calls += 1
            try:
                with self._in_flight:
                    message: Any = asker.invoke(messages, **parameters)
                tokens = message.usage_metadata or {}
                text = message.content if isinstance(message.content, str) else ""
            except openai.LengthFinishReasonError as cut:
                if used := cut.completion.usage:
                    spent.add_tokens(self._config, used.prompt_tokens, used.completion_tokens)
                return cut.completion.choices[0].message.content or ""
            except openai.ContentFilterFinishReasonError:
                return ""
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                raise
            except openai.APIConnectionError as error:
                if self._server.revive(where):
                    continue
                raise self._explained(error) from None
            except openai.APIResponseValidationError as error:
                raise self._misunderstood(error) from None
            except openai.APIError as error:
                raise self._explained(error) from None
            except NOT_THE_PROTOCOL as error:
                raise self._misunderstood(error) from None
            self._understood = True
            spent.add_tokens(self._config, tokens.get("input_tokens", 0), tokens.get("output_tokens", 0))
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
                    timeout=self._config.timeout_s,
                    max_retries=self._transport_retries,
                    use_responses_api=False,
                    **client_options(where),
                )
            return self._clients[key]

    def _misunderstood(self, error: Exception) -> Exception:
        """Garbage from a server that made sense before is a bad reply; from one that never did, the wrong URL."""
        return BadReply("not a chat completion") if self._understood else self._explained(error)

    def _explained(self, error: Exception) -> SegsmithError:
        return explained(error, self._server.endpoint(), self.name, self._config.timeout_s)


def _repair(said: str, bad: BadReply, schema: type[BaseModel]) -> Messages:
    """What is added to the conversation after a bad reply."""
    problem = str(bad).split(" in '", 1)[0]
    answer = [("ai", said[:ECHO])] if said.strip() else []
    return [*answer, ("human", fill("repair", problem=problem, schema=schema_text(schema)))]


@contextmanager
def open_chat(
    config: LLMConfig,
    api_key: str | None = None,
    *,
    log: Path | None = None,
    note: Callable[[Spent], None] | None = None,
    usd_left: Callable[[], float] | None = None,
) -> Iterator[OpenAIChat]:
    """The chat model of a config; a local server is started at the first question, stopped at the end.

    `log` takes what a local server says. Raises `SegsmithError` at once when the model file, the program, or a
    key that the hosted API needs, is missing.
    """
    if config.server == "openai":
        yield OpenAIChat(config, RemoteServer(_remote(config, api_key)), note=note, usd_left=usd_left)
        return
    make = llama_server if config.server == "llamacpp" else vllm_server
    with make(config, log) as server:
        yield OpenAIChat(
            config, server, note=note, usd_left=usd_left, transport_retries=LOCAL_TRANSPORT_RETRIES
        )


def check_llm(config: LLMConfig, api_key: str | None = None) -> None:
    """Say what is wrong with the language model of a config before anything is made with it.

    A local server is not started: its program and model file are looked for. A URL is asked for its models, and
    where the name is not listed, to answer in a few tokens. Raises `SegsmithError`.
    """
    if config.server == "llamacpp":
        check_llama(config)
    elif config.server == "vllm":
        check_vllm(config)
    else:
        _check_url(config, _remote(config, api_key))


def _remote(config: LLMConfig, api_key: str | None) -> Endpoint:
    if config.base_url is None and api_key is None:
        raise SegsmithError(
            "The hosted language model needs a key.",
            "Set OPENAI_API_KEY, or set llm.base_url to a server of your own.",
        )
    return Endpoint(config.base_url or OPENAI_URL, api_key)


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
            has = f" It has: {', '.join(listed[:5])}." if listed else ""
            raise SegsmithError(complaint.message, f"{complaint.remedy}{has}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            raise explained(error, where, config.model, timeout_s) from None
        except openai.APIStatusError:
            return  # it is there and it is busy, or wants another question: the run will tell
        except (openai.OpenAIError, *NOT_THE_PROTOCOL) as error:
            problem = error
    if problem is not None:
        raise explained(problem, where, config.model, timeout_s) from None


def _listed_models(client: openai.OpenAI) -> list[str]:
    """Model names; empty where the server keeps no list."""
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
