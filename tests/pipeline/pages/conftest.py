"""A gallery that is served, and a real browser: Chromium from the system, driven by Playwright."""

import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.pages import gallery
from pipeline.pages.serve import GalleryServer
from pipeline.store import Store, open_store
from tests import made_pages

AXE = "axe-core@4.14.1"


@dataclass
class Watched:
    """A page, and what must not happen on it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


OpenPage = Callable[..., Watched]


@pytest.fixture(scope="session")
def pages_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with three releases and the gallery over them, the live sampler with it."""
    store = open_store(f"file://{tmp_path_factory.mktemp('pages')}/store")
    made_pages.fill(store)
    said: list[str] = []
    assert gallery.build(store, said.append) == 3
    assert not said, f"{said}: these tests need npm and its registry (`apt-get install npm`, or Node.js)"
    return store


@pytest.fixture(scope="session")
def served(pages_store: Store) -> Iterator[str]:
    """The address of that gallery's folder."""
    with GalleryServer(pages_store, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url.rpartition("/")[0]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("these tests need Chromium: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open an address in a fresh window; gives the page and lists of its requests and errors."""
    contexts = []

    def opening(url: str, dark: bool = False, width: int = 1280, height: int = 900) -> Watched:
        scheme: Literal["dark", "light"] = "dark" if dark else "light"
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on(
            "console",
            lambda message: watched.errors.append(message.text) if message.type in ("error", "warning") else None,
        )
        watched.page.goto(url)
        return watched

    yield opening
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core (MPL-2.0), which looks for faults of accessibility; these tests alone use it."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("these tests need npm: `apt-get install npm`, or Node.js")
    subprocess.run([npm, "pack", AXE, "--silent"], cwd=folder, check=True, capture_output=True, timeout=300)
    with tarfile.open(next(Path(folder).glob("*.tgz"))) as tar:
        file = tar.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()
