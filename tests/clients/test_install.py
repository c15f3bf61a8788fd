"""The base install: the client imports and works where nothing of the server is installed."""

import subprocess
import sys

from source_tree import ROOT

ABSENT = ("torch", "vllm", "typer", "rich", "click", "fastapi", "pydantic", "numpy", "safetensors")

PROGRAM = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import shadow_client
from shadow_client.testing import MockServer
with MockServer().client() as client:
    sys.stdout.write(client.completions.create("hi").text)
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert not loaded & {{"shadow_server", "shadow_runtime", "shadow_kernels", *{absent!r}}}, loaded
"""


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_client_needs_httpx_only():
    done = run(PROGRAM.format(absent=ABSENT))
    assert (done.stdout, done.stderr) == ("[base] hi", "")


def test_an_absent_module_is_noticed():
    done = run(PROGRAM.format(absent=(*ABSENT, "httpx")))
    assert "ModuleNotFoundError: httpx" in done.stderr


def test_errors_are_there_without_httpx():
    program = (
        "import sys; from shadow_client import ApiError; from shadow_client.error_code import *;"
        "assert 'httpx' not in sys.modules; import shadow_client; shadow_client.Client;"
        "assert 'httpx' in sys.modules; assert 'Client' in dir(shadow_client);"
        "hasattr(shadow_client, 'Nonsense') and sys.exit('nonsense')"
    )
    assert run(program).stderr == ""


def test_the_client_is_typed():
    assert (ROOT / "clients/shadow_client/py.typed").exists()
