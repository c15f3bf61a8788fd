"""An unmodified vLLM in a process of its own, where no plugin was ever imported.

Run as a script: `python engine_stock.py REQUEST RESPONSE` reads a JSON request and writes the answers as JSON.
`answer_with_stock` does that from a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_session import ENGINE_ARGS, Answer, Row, sampling, token_prompts


def answer_with_stock(
    model: Path, rows: Sequence[Row], num_tokens: int, directory: Path, **engine_args: Any
) -> list[Answer]:
    """Answer all rows as bare base rows, in one batch of a stock engine; adapters of the rows are ignored."""
    request = {
        "model": str(model),
        "prompts": [row.prompt for row in rows],
        "num_tokens": num_tokens,
        "engine_args": ENGINE_ARGS | engine_args,
    }
    (directory / "request.json").write_text(json.dumps(request))
    command = [sys.executable, __file__, "request.json", "response.json"]
    # An empty list of plugins loads none; the folder of this file is the script's sys.path[0].
    environment = os.environ | {"VLLM_PLUGINS": ""}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240
    )
    if done.returncode != 0:
        raise RuntimeError(f"the stock engine failed:\n{done.stderr[-4000:]}")
    return [Answer.from_dict(a) for a in json.loads((directory / "response.json").read_text())]


def main(request_file: str, response_file: str) -> None:
    """Answer one request file."""
    from vllm import LLM

    request = json.loads(Path(request_file).read_text())
    rows = [Row(None, tuple(prompt)) for prompt in request["prompts"]]
    llm = LLM(request["model"], dtype="float32", **request["engine_args"])
    outputs = llm.generate(
        token_prompts(rows), sampling(request["num_tokens"], prompt_logprobs=True), use_tqdm=False
    )
    if any(name.split(".")[0] == "shadow_runtime" for name in sys.modules):
        raise RuntimeError("the stock engine imported the plugin")
    answers = [Answer.of(output).to_dict() for output in outputs]
    Path(response_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
