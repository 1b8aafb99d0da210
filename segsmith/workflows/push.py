"""Uploading a dataset folder to the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segsmith.datasets.staging import MANIFEST
from segsmith.errors import SegsmithError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = (
            "Log in with `hf auth login`, with a token that may write there."
            if status in (401, 403)
            else "Rerun the command to resume; no file is uploaded twice."
        )
        raise SegsmithError(f"The Hub rejected the upload to {to} (HTTP {status}).", remedy) from None
    except (transport, OSError, ValueError) as error:
        raise SegsmithError(
            f"The upload to {to} failed: {' '.join(str(error).split())[:200] or type(error).__name__}.",
            "Rerun the command to resume; no file is uploaded twice.",
        ) from None
    return str(repository)


def check_repository(to: str) -> None:
    """Raise `SegsmithError` unless `to` is "org/name"."""
    if not REPO.fullmatch(to):
        raise SegsmithError(f"{to!r} is not the name of a repository.", "Type --to org/name.")
