"""GuideLLM against this server, unmodified: an adapter is its model, and it counts what /metrics counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shadow_server.demo import demo_model_path

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ADAPTER = "french"
NUM_REQUESTS = 6
NUM_TOKENS = 8


def num_answered(real):
    series = f'shadow_requests_total{{adapter="{ADAPTER}",outcome="ok",tenant="default"}}'
    return real.samples().get(series, 0.0)


def test_a_synchronous_run_over_an_adapter(real, tmp_path):
    before = num_answered(real)
    file = tmp_path / "run.json"
    words = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    words += ["--backend", f"kind=openai_http,target={real.process.url},model={ADAPTER}"]
    words += ["--profile", "kind=synchronous"]
    words += ["--constraint", f"kind=max_requests,count={NUM_REQUESTS}"]
    words += ["--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={NUM_TOKENS}"]
    words += ["--tokenizer", f"kind=hf_auto,model={demo_model_path()}"]
    words += ["--output", f"kind=json,path={file}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (run,) = json.loads(file.read_text())["benchmarks"]
    answered = {"successful": NUM_REQUESTS, "errored": 0, "incomplete": 0, "total": NUM_REQUESTS}
    assert run["metrics"]["request_totals"] == answered
    counted = [one["output_metrics"]["text_tokens"] for one in run["requests"]["successful"]]
    assert counted == [NUM_TOKENS] * NUM_REQUESTS
    assert run["metrics"]["time_to_first_token_ms"]["successful"]["mean"] > 0
    # One request goes first and sees whether the server answers at all.
    assert num_answered(real) - before in (NUM_REQUESTS, NUM_REQUESTS + 1)
