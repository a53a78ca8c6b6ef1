"""A real browser for the pages: Chromium, driven by playwright; skipped with the reason where either is missing."""

import shutil

import pytest

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def chromium():
    """Chromium without a window, on an empty profile."""
    driver = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with driver.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """open_page(html, scheme="light") opens it; at the end there was no complaint and no other request."""
    pages, complaints, asked = [], [], []

    def opened(html, scheme="light"):
        (path := tmp_path / f"{len(pages)}.html").write_text(html)
        page = chromium.new_page(color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    assert asked == [(tmp_path / f"{i}.html").as_uri() for i in range(len(pages))]
