"""vLLM's own serving benchmark against this server, with its options for many adapters, unmodified."""

import json
import subprocess
import sys

import pytest

from running_server import BASE
from shadow_server.demo import demo_model_path

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# The `vllm` command itself cannot start on the CPU wheel; this is the module behind `vllm bench serve`.
PROGRAM = """
import argparse
import sys
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args(sys.argv[1:]))
"""
ADAPTERS = ("french", "shout", "json")
NUM_PROMPTS = 12


def answered(real) -> dict[str, float]:
    """Return how many requests of each adapter were answered."""
    found = {}
    for line in real.client.get("/metrics").text.splitlines():
        if line.startswith("shadow_requests_total{") and 'outcome="ok"' in line:
            labels, value = line.rsplit(" ", 1)
            found[labels.split('adapter="')[1].split('"')[0]] = float(value)
    return found


def test_round_robin_over_adapters(real, tmp_path):
    before = answered(real)
    words = [sys.executable, "-c", PROGRAM, "--backend", "openai", "--base-url", real.process.url]
    words += ["--model", BASE, "--tokenizer", str(demo_model_path()), "--lora-modules", *ADAPTERS]
    words += ["--lora-assignment", "round-robin", "--dataset-name", "random", "--ignore-eos"]
    words += ["--num-prompts", str(NUM_PROMPTS), "--random-input-len", "16"]
    words += ["--random-output-len", "8", "--save-result", "--result-dir", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert (result["completed"], result["failed"]) == (NUM_PROMPTS, 0)
    assert result["total_output_tokens"] == NUM_PROMPTS * 8
    after = answered(real)
    asked = {name: after[name] - before.get(name, 0) for name in ADAPTERS}
    assert asked == dict.fromkeys(ADAPTERS, NUM_PROMPTS / len(ADAPTERS))
