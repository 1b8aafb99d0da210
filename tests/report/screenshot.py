"""A screenshot of the top of a report, for the README.

`python tests/report/screenshot.py RUN/report.html docs/images/report.png` needs chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, HEIGHT = 1280, 1480
TIMEOUT_S = 120
OFFLINE = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)


def screenshot(page: Path, image: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write a PNG of the first `height` pixels of a page, in light colours."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("There is no chromium. Install it, e.g. with `apt install chromium`.")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *OFFLINE,
                f"--user-data-dir={profile}", f"--window-size={width},{height}",
                f"--screenshot={image.resolve()}", page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=TIMEOUT_S,
        )  # fmt: skip


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]), Path(sys.argv[2]))
