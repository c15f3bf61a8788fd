"""The whole log of a server's start, at its most talkative, shows none of the secrets that it was started with."""

import httpx
import pytest

from postgres import postgres_server  # noqa: F401
from running_server import START_SECONDS

pytestmark = pytest.mark.engine

SECRETS = {
    "--api-key": "sk-apisecret",
    "--hf-token": "hf_optionsecret",
    "PGPASSWORD": "pgsecret",
    "HF_TOKEN": "hf_environmentsecret",
    "VLLM_API_KEY": "sk-environmentsecret",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=otelsecret",
}
PASSWORD = "urlsecret"


@pytest.fixture(scope="module")
def log(start_server, postgres_server):  # noqa: F811
    """Return the log of a server that was started with every secret, asked, and stopped."""
    options = [w for name, value in SECRETS.items() if name[0] == "-" for w in (name, value)]
    with pytest.MonkeyPatch.context() as patch, postgres_server.database() as database:
        for name, value in SECRETS.items():
            if name[0] != "-":
                patch.setenv(name, value)
        patch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
        url = postgres_server.url(database, password=PASSWORD)
        process, _ = start_server("--registry-url", url, *options)
        with process:
            process.wait_until_ready(START_SECONDS)
            headers = {"authorization": f"Bearer {SECRETS['--api-key']}"}
            for sent in (headers, {"authorization": "Bearer sk-wrongsecret"}):
                httpx.get(f"{process.url}/v1/models", headers=sent, timeout=20)
        yield process.log_path.read_text()


@pytest.mark.parametrize("secret", [*SECRETS.values(), PASSWORD, "sk-wrongsecret"])
def test_the_log_has_no_secret(log, secret):
    assert secret.removeprefix("authorization=") not in log


def test_the_log_is_the_whole_one(log):
    for said in ("non-default args", "DEBUG", "Application startup complete", "GET /v1/models"):
        assert said in log
