"""A real Chromium, driven by Playwright; tests that need it are skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FAKES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # a microphone that beeps
SECONDS = 20


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Its pages are opened by `open_page`."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium in PATH")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *FAKES])
        yield browser
        browser.close()


@contextmanager
def open_page(
    browser: Any, url: str, *, width: int = 1280, height: int = 800, quiet: str = "status of 4", **context: Any
) -> Iterator[Any]:
    """A page of its own context. What its scripts raise fails the test; `page.sent` holds all bodies of POST.

    quiet: what an error of the browser's console may have in it all the same.
    """
    opened = browser.new_context(viewport={"width": width, "height": height}, **context)
    opened.set_default_timeout(1000 * SECONDS)
    page = opened.new_page()
    raised: list[str] = []
    page.sent = []
    page.on("pageerror", lambda error: raised.append(str(error)))
    page.on("console", lambda m: raised.append(m.text) if m.type == "error" and quiet not in m.text else None)
    page.on("request", lambda r: page.sent.append(r.post_data_json) if r.method == "POST" else None)
    page.goto(url)
    yield page
    assert not raised
    opened.close()
