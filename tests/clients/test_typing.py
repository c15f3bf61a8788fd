"""What a type checker makes of a program that uses the client."""

import os
import subprocess
import sys

from source_tree import ROOT

PROGRAM = """
from shadow_client import AsyncClient, Client

def plain(client: Client) -> None:
    reveal_type(client.completions.create("hi", adapter="a", max_tokens=3).info.adapter_digest)
    with client.chat.stream([{"role": "user", "content": "hi"}], temperature=0) as stream:
        for chunk in stream:
            reveal_type(chunk)
    client.completions.create("hi", max_tokens="3")
    client.completions.create("hi", no_such_field=3)

def tools(client: Client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    client.chat.create(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "4"},
            {"role": "user", "content": [{"type": "text", "text": "and?"}]},
        ]
    )

async def asynchronous(client: AsyncClient) -> None:
    reveal_type(await client.adapters.list())
"""


def test_programs_are_checked(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--strict", "--no-error-summary", "--cache-dir", str(tmp_path), "program.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT / "clients")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    told = [line for line in done.stdout.splitlines() if "defined in" not in line]
    expected = [
        (5, 'Revealed type is "str | None"'),
        (8, 'Revealed type is "shadow_client.generation.ChatCompletion"'),
        (9, "[arg-type]"),
        (10, "[call-arg]"),
        (23, 'Revealed type is "tuple[shadow_client.adapter.Adapter, ...]"'),
    ]
    assert len(told) == len(expected), done.stdout + done.stderr
    for line, (number, text) in zip(told, expected, strict=True):
        assert line.startswith(f"program.py:{number}: ")
        assert text in line
