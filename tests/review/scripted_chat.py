"""A language model that says what it is told to."""

from segsmith.errors import BadReply


class Chat:
    """Answers with what it is given; keeps what it was asked."""

    name = "scripted"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def ask(self, system, user, schema, *, seed):
        self.asked.append((system, user, schema))
        reply = self.replies.pop(0)
        if reply is None:
            raise BadReply("garbage")
        return schema.model_validate(reply)
