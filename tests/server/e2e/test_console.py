"""The browser console over a real engine: an adapter is loaded, answers are compared, numbers move."""

import re
import shutil

import pytest

from browser import running_browser
from console_view import adapter_row, choose_adapter
from running_server import ADAPTERS, PROMPTS, UNLOADED, text_of

pytestmark = pytest.mark.engine

PROMPT = PROMPTS[0].prompt
SHIPPED = "french"
ASKED = (None, SHIPPED, UNLOADED)
PLAYGROUND_TOKENS = 64
"""What the playground asks for when nobody changes it."""

NUM_ENDLESS = 900
ENDLESS_PROMPT = "I I I I I I"
"""Nobody's greedy answer to it ends by itself."""

DIGEST, REQUESTS, FIRST_TOKEN, INTER_TOKEN = 4, 6, 7, 8
"""Cells of an adapter's row."""


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture
def console(browser, server):
    """Open the console of a server that does nothing else."""
    browser.open(f"{server.process.url}/console")
    browser.wait_for(lambda: adapter_row(browser, SHIPPED))
    yield browser
    browser.open("about:blank")
    assert browser.complaints() == []


def load(console, name, folder):
    console.type("#load-name", name)
    console.type("#load-files", "\n".join(str(file) for file in folder.iterdir()))
    console.click("#load-start")


def ask(console, prompt, *adapters):
    """Ask the base model and adapters."""
    for place, name in enumerate(adapters, start=1):
        choose_adapter(console, place, name)
    console.type("#prompt", prompt)
    console.click("#ask")


def wait_for_outcomes(console, *outcomes):
    """Wait until every pane of the playground says how its answer ended."""
    console.wait_for(lambda: console.texts_of(".outcome") == list(outcomes))


def cards(server):
    return {card["id"]: card for card in server.client.get("/v1/adapters").json()["data"]}


def num_requests(console, adapter):
    return int(adapter_row(console, adapter or "base model")[REQUESTS] or 0)


def total(server, series, label=""):
    """Return the sum of a series' samples that have the label."""
    samples = server.samples().items()
    return sum(n for key, n in samples if key.startswith(f"{series}{{") and label in key)


def num_aborted(server):
    return total(server, "shadow_requests_total", 'outcome="aborted"')


def num_running(server):
    return total(server, "vllm:num_requests_running")


def first_tokens(server, adapter):
    """Return the adapter's cumulative counts of times to first token by upper bound, in seconds, as printed."""
    series = "shadow_time_to_first_token_seconds_bucket"
    bucket = re.compile(rf'{series}{{adapter="{adapter}",le="([^"]+)",tenant="default"}}')
    samples = server.samples().items()
    return {found[1]: count for key, count in samples if (found := bucket.fullmatch(key))}


def middle_of_the_new_one(before, after):
    """Return the middle of the bucket that the only new observation is in, in seconds: the median of one."""
    bounds = sorted(after, key=float)
    grown = [after[bound] - before.get(bound, 0) for bound in bounds]
    place = grown.index(1)
    assert grown == [0] * place + [1] * (len(grown) - place)
    lower = float(bounds[place - 1]) if place else 0.0
    return (lower + float(bounds[place])) / 2


def spelled(seconds):
    """Return seconds as the console shows them."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def test_a_loaded_adapter_answers_beside_others_and_its_numbers_move(console, server):
    load(console, UNLOADED, ADAPTERS[UNLOADED])
    row = console.wait_for(lambda: adapter_row(console, UNLOADED))
    card = cards(server)[UNLOADED]
    console.wait_for_text("#load-stages", f"{UNLOADED} version {card['version']} answers.")
    stages = set(console.texts_of("#load-stages li"))
    assert {"Reading", "Checked", "Loading", "Registered", "Resident"} <= stages
    shown = [card["id"], str(card["version"]), "RESIDENT", card["level"], card["digest"]]
    assert row[: DIGEST + 1] == shown

    asked = {name: num_requests(console, name) for name in ASKED}
    before = first_tokens(server, UNLOADED)
    ask(console, PROMPT, SHIPPED, UNLOADED)
    wait_for_outcomes(console, "Done.", "Done.", "Done.")

    for name in ASKED:
        console.wait_for(lambda name=name: num_requests(console, name) == asked[name] + 1)
    first_token = spelled(middle_of_the_new_one(before, first_tokens(server, UNLOADED)))
    console.wait_for(lambda: adapter_row(console, UNLOADED)[FIRST_TOKEN] == first_token)
    assert re.fullmatch(r"[\d.]+ ms", adapter_row(console, UNLOADED)[INTER_TOKEN])


def test_answers_side_by_side_are_those_of_the_api(console, server):
    server.load(UNLOADED, ADAPTERS[UNLOADED]).raise_for_status()
    ask(console, PROMPT, SHIPPED, UNLOADED)
    wait_for_outcomes(console, "Done.", "Done.", "Done.")

    texts = console.texts_of(".pane pre")
    fields = {"max_tokens": PLAYGROUND_TOKENS, "temperature": 0}
    assert texts == [text_of(server.complete(PROMPT, name, **fields)) for name in ASKED]
    assert texts[1:] == [PROMPTS[0].expected[name] for name in ASKED[1:]]
    assert len(set(texts)) == len(ASKED)
    versions = {name: card["version"] for name, card in cards(server).items()}
    adapters = [f"{name} version {versions[name]}" for name in ASKED[1:]]
    assert console.texts_of(".pane h3") == ["base model", *adapters]


def test_a_damaged_adapter_is_refused_with_the_reason(console, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(ADAPTERS[UNLOADED], folder)
    (tensors,) = folder.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    load(console, "cut", folder)

    console.wait_for_text("#load-stages .problem", "is truncated")
    assert adapter_row(console, "cut") is None


def test_answers_come_while_the_engine_works_and_stop_ends_its_work(console, server):
    before = num_aborted(server)
    console.run("document.getElementById('max-tokens').value = arguments[0]", NUM_ENDLESS)
    ask(console, ENDLESS_PROMPT, SHIPPED)
    console.wait_for(lambda: len(texts := console.texts_of(".pane pre")) == 2 and all(texts))
    console.wait_for(lambda: num_running(server) == 2)
    console.click("#stop")
    wait_for_outcomes(console, "Stopped.", "Stopped.")

    console.wait_for(lambda: num_running(server) == 0)
    console.wait_for(lambda: num_aborted(server) == before + 2)
