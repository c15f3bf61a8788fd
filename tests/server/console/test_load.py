"""Loading in a real browser: files chosen and dropped, their progress, refusals."""

import asyncio

import pytest

from console_view import adapter_row

pytestmark = pytest.mark.slow


def test_chosen_files_are_loaded_with_progress(browser, server, write_adapter):
    browser.type("#load-name", "support")
    browser.type("#load-files", str(write_adapter("support")))
    browser.click("#load-start")

    browser.wait_for_text("#load-stages", "support version 1 answers.")
    stages = browser.texts_of("#load-stages li")
    assert stages[-1] == "support version 1 answers."
    assert {"Checked", "Loading", "Registered", "Resident"} <= set(stages)
    assert browser.run("return document.getElementById('load-bar').value") == 1
    browser.wait_for(lambda: adapter_row(browser, "support"))


def test_dropped_folder_is_loaded_under_its_name(browser, server, write_adapter):
    folder = write_adapter("french").parent
    browser.drop_files("#drop", "#drop.over", folder)
    browser.wait_for_text("#chosen", "adapter.txt")
    browser.click("#load-start")

    browser.wait_for(lambda: adapter_row(browser, "french"))
    assert server.engine.adapters.entries()[0].name.name == "french"


def test_of_a_trainers_folder_only_the_adapter_is_taken(browser, server, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    taken = ["adapter_config.json", "adapter_model.safetensors"]
    for name in [*taken, "README.md", "model.safetensors", "optimizer.pt"]:
        (folder / name).write_text(name)
    browser.drop_files("#drop", "#drop.over", folder)
    browser.wait_for_text("#chosen", "adapter_config.json")
    assert sorted(text.partition(",")[0] for text in browser.texts_of("#chosen li")) == taken


def test_the_files_of_an_adapter_are_the_clients(browser, server):
    from shadow_client.upload import ADAPTER_FILES

    script = 'return (await import("/console/load.js")).ADAPTER_FILES;'
    assert browser.run(script) == list(ADAPTER_FILES)


def test_dropped_files_can_be_taken_back(browser, server, write_adapter):
    file = write_adapter("french")
    browser.drop_files("#drop", "#drop.over", file)
    browser.wait_for_text("#chosen", "adapter.txt")
    browser.click("#chosen button")

    browser.wait_for(lambda: browser.texts_of("#chosen li") == [])
    browser.type("#load-name", "french")
    browser.click("#load-start")
    browser.wait_for_text("#load-stages", "Choose the adapter's files first.")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("support", "broken", "NaN"), ("no/such name", "fine", "An adapter name is")],
)
def test_refused_adapter_says_why(browser, server, write_adapter, name, content, reason):
    browser.type("#load-name", name)
    browser.type("#load-files", str(write_adapter("x", content)))
    browser.click("#load-start")

    browser.wait_for_text("#load-stages .problem", reason)
    assert adapter_row(browser, "support") is None
    assert browser.run("return document.getElementById('load-start').disabled") is False


def test_upload_can_be_cancelled(browser, server, write_adapter):
    server.engine.loader.gate = asyncio.Event()
    browser.type("#load-name", "support")
    browser.type("#load-files", str(write_adapter("support")))
    browser.click("#load-start")
    browser.wait_for_text("#load-stages", "Loading")
    browser.click("#load-cancel")

    browser.wait_for_text("#load-stages .problem", "Cancelled.")
    server.call(server.engine.loader.gate.set)
