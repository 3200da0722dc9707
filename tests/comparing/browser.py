"""A real browser without a window, where one is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 120


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    return found


def dump_dom(page: Path, folder: Path, width: int) -> tuple[str, list[str]]:
    """The page as the browser understood it, and the addresses that it asked for."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-component-update",
            "--disable-background-networking", "--no-first-run",
            f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
            f"--window-size={width},2000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=_SECONDS, check=True,
    )  # fmt: skip
    return done.stdout, _requested(log)


def _requested(log: Path) -> list[str]:
    """Addresses that a page asked for; the browser's own requests have no origin."""
    data = json.loads(log.read_text(encoding="utf-8"))
    start = data["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [event["params"] for event in data["events"] if event["type"] == start]
    return [job["url"] for job in jobs if job.get("initiator") not in (None, "not an origin")]
