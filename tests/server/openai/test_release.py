"""A request's place is free again before its client can know that the answer has ended."""

from types import SimpleNamespace

from shadow_server.openai.generation import _releasing


async def test_the_place_is_given_back_right_before_the_last_byte():
    seen = []

    async def send(message):
        seen.append(message.get("body"))

    ticket = SimpleNamespace(release=lambda: seen.append("released"))
    releasing = _releasing(SimpleNamespace(ticket=ticket, send=send))
    await releasing({"type": "http.response.start", "status": 200})
    await releasing({"type": "http.response.body", "body": b"a", "more_body": True})
    await releasing({"type": "http.response.body", "body": b"z"})
    assert seen == [None, b"a", "released", b"z"]
