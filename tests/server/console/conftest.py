"""One browser for a module's tests, and a server of its own for each test."""

import pytest

from browser import running_browser
from console_server import ConsoleServer


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture
def server(tmp_path, browser):
    with ConsoleServer(tmp_path / "state") as server:
        browser.open(f"{server.url}/console")
        browser.wait_for_text("#status", "0 adapters")
        yield server
        browser.open("about:blank")
    assert browser.complaints() == []


@pytest.fixture
def write_adapter(tmp_path):
    def write(name: str, content: str = ""):
        folder = tmp_path / "files" / name
        folder.mkdir(parents=True)
        file = folder / "adapter.txt"
        file.write_text(content or f"weights of {name}")
        return file

    return write
