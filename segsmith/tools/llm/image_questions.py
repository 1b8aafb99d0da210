"""A vision-language model as a witness: it counts the objects of each class, through the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from segsmith.errors import BadReply
from segsmith.ids import seed_of
from segsmith.prompts import fill
from segsmith.protocols import ChatModel
from segsmith.types import Image, Testimony

MOST_COUNTED = 99
MOST_CLASSES = 20
"""Classes asked about in one question."""
TOKENS_PER_CLASS = 12
"""Of a reply, for a name and a number (ours)."""


class VlmWitness:
    """A `Witness` that asks a `ChatModel` which reads images: one question per image and `MOST_CLASSES` classes.

    An image whose reply stays unusable after all retries has no testimony. Questions about the images of a call are
    asked side by side, as many as the model's `concurrency`.
    """

    def __init__(
        self, chat: ChatModel, classes: Sequence[str], seed: int, max_tokens: int, workers: int = 1
    ) -> None:
        """`max_tokens` is the longest reply of the chat model; it limits the classes per question."""
        self.name = f"vlm:{chat.name}"
        self._chat = chat
        self._seed = seed
        self._workers = workers
        size = max(1, min(MOST_CLASSES, max_tokens // TOKENS_PER_CLASS))
        self._groups = [tuple(classes[i : i + size]) for i in range(0, len(classes), size)]

    def testify(self, images: Sequence[Image], ids: Sequence[str]) -> list[Testimony | None]:
        """See `Witness.testify`. Raises `SegsmithError` if the server does not answer."""
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._testify, images, ids))

    def _testify(self, image: Image, image_id: str) -> Testimony | None:
        counts: dict[str, int] = {}
        try:
            for reply in self._replies(image, image_id):
                counts |= reply
        except BadReply:  # counted by the chat model; without money left no request was sent
            return None
        return Testimony({name: float(n > 0) for name, n in counts.items()}, counts)

    def _replies(self, image: Image, image_id: str) -> Iterator[dict[str, int]]:
        for group in self._groups:
            user = fill("look_user", classes=", ".join(group))
            reply = self._chat.ask(
                fill("look_system"),
                user,
                counts_schema(group),
                seed=seed_of(self._seed, image_id),
                images=[image],
            )
            yield reply.model_dump(by_alias=True)


def counts_schema(classes: Sequence[str]) -> type[BaseModel]:
    """A reply with one integer in [0, `MOST_COUNTED`] per class, under the class's name."""
    fields: dict[str, Any] = {
        f"class_{i}": (Annotated[int, Field(ge=0, le=MOST_COUNTED, alias=name)], ...)
        for i, name in enumerate(classes)
    }
    return create_model("Counts", __config__=ConfigDict(extra="forbid"), **fields)
