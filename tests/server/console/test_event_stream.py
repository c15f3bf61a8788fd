"""The console's reading of server-sent events, in a real browser."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_in_any_cut(browser, server, size):
    text = (
        'event: loading\ndata: {"a": 1}\n\ndata: two\ndata: lines\r\n\r\n: comment\n\n'
        "data: a\u2028b\u2029c\n\ndata: [DONE]\n\nrest"
    )
    script = """
        const { EventParser } = await import("/console/event_stream.js");
        const parser = new EventParser();
        return arguments[0].flatMap((piece) => parser.take(piece));
    """
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert browser.run(script, pieces) == [
        {"event": "loading", "data": json.dumps({"a": 1})},
        {"event": "message", "data": "two\nlines"},
        {"event": "message", "data": "a\u2028b\u2029c"},
        {"event": "message", "data": "[DONE]"},
    ]
