"""Runs in distilabel's environment: its TextGeneration task over an OpenAI-protocol server.

Reads {"base_url", "api_key", "model", "asked": [[class, question]], "temperature", "max_tokens"} from standard
input and prints a list of [class, reply].
"""

import json
import sys

from distilabel.models import OpenAILLM
from distilabel.steps.tasks import TextGeneration


def main():
    given = json.load(sys.stdin)
    llm = OpenAILLM(
        model=given["model"], base_url=given["base_url"], api_key=given["api_key"],
        generation_kwargs={"temperature": given["temperature"], "max_new_tokens": given["max_tokens"]},
    )  # fmt: skip
    task = TextGeneration(llm=llm, use_cache=False)
    task.load()
    rows = [{"instruction": question, "class": name} for name, question in given["asked"]]
    replies = [
        [row["class"], (row["generation"] or "").strip()]
        for start in range(0, len(rows), 8)
        for row in next(task.process(rows[start : start + 8]))
    ]
    print(json.dumps(replies))


if __name__ == "__main__":
    main()
