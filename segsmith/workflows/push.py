"""Uploading a dataset folder to the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segsmith.datasets.staging import MANIFEST
from segsmith.errors import SegsmithError, causes

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RESUME = "Rerun the command to resume; no file is uploaded twice."
REPO = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


def push_folder(folder: Path, to: str, *, private: bool = True, api: HfApi | None = None) -> str:
    """Upload a Hugging Face export to the dataset repository `to` ("org/name") and return its address.

    The repository is created if it is not there. Files that it has already are not uploaded again, so the same call
    resumes an upload that was interrupted. Raises `SegsmithError` for a name that the Hub does not allow, without a
    token, and for whatever the Hub answers instead.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repository(to)
    # The HTTP library below huggingface_hub differs between its versions; all call their base class so.
    transport: type[Exception] = next(
        (
            kind
            for kind in HfHubHTTPError.__mro__
            if kind.__name__ == "HTTPError" and issubclass(kind, Exception)
        ),
        OSError,
    )
    api = api or HfApi()
    try:
        repository = api.create_repo(to, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=to,
            repo_type="dataset",
            folder_path=folder,
            ignore_patterns=[MANIFEST],
            commit_message="Dataset made by segsmith",
        )
    # The upload of a single file fails with a RuntimeError that the Hub's answer has caused.
    except (HfHubHTTPError, transport, OSError, ValueError, RuntimeError) as error:
        answers = [cause for cause in causes(error) if isinstance(cause, HfHubHTTPError)]
        if not answers:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise SegsmithError(f"The upload to {to} failed: {said}.", RESUME) from None
        status = answers[0].response.status_code
        remedy = RESUME
        if status in (401, 403):
            remedy = "Log in with `hf auth login`, with a token that may write there."
        raise SegsmithError(f"The Hub rejected the upload to {to} (HTTP {status}).", remedy) from None
    return str(repository)


def check_repository(to: str) -> None:
    """Raise `SegsmithError` unless `to` is "org/name"."""
    if not REPO.fullmatch(to):
        raise SegsmithError(f"{to!r} is not the name of a repository.", "Type --to org/name.")
