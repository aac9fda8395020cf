"""Pages in a headless browser."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def browser() -> Iterator:
    """A headless Chromium; the test is skipped without one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def opened(started, path: Path, scheme: str, width: int) -> Iterator:
    """A page, which must make no request, and log nothing."""
    context = started.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page, said, requested = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def check(page, width: int) -> None:
    """Assert that the page is as wide as the window, and that every picture and label is whole and named."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1
    pictures = page.locator("img").evaluate_all("all => all.map(i => [i.alt, i.complete, i.naturalWidth])")
    assert all(alt and complete and wide for alt, complete, wide in pictures)
    assert page.locator("svg:not([aria-label])").count() == 0
    assert page.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    outside = """all => all.filter(text => {
      const chart = text.ownerSVGElement.getBoundingClientRect(), box = text.getBoundingClientRect();
      return box.left < chart.left - 1 || box.right > chart.right + 1 || box.bottom > chart.bottom + 1;
    }).map(text => text.textContent)"""
    assert page.locator("svg text").evaluate_all(outside) == []
