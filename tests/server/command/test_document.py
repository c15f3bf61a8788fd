"""docs/cli.md is what the commands say of themselves."""

from shadow_server.command import document
from source_tree import ROOT


def test_the_document_is_current():
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written == document.render(), document.__doc__


def test_every_command_is_in_it():
    names = {name for name, _ in document._commands()}
    assert {"adapters list", "adapters convert", "chat", "top", "doctor"} <= names
    assert "serve" not in names


def test_parameters_of_each_kind():
    text = document.render()
    for row in (
        "| `[FOLDER]` | A folder of this machine, which is uploaded. |",
        "| `--replace / --no-replace` |",
        "| `--json` | Write JSON for programs. |",
        "| `--to paper\\|peft` | The format of the new folder. Required. |",
        "| `--max-tokens N` | Longest answer. Default: 512. |",
        "| `--url TEXT` | The server's address. Default: http://localhost:8000. "
        "Or `SHADOW_SERVER_URL`. |",
        "| `--base, --no-base` |",
    ):
        assert row in text, row
