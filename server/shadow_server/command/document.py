"""Writes docs/cli.md: `python -m shadow_server.command.document > docs/cli.md`.

Runs in: a terminal. Made from the commands themselves; a test compares the two.
"""

from __future__ import annotations

import inspect
import sys
from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.models

from shadow_server.cli import add_server_arguments
from shadow_server.command import adapters
from shadow_server.command.exit_code import MEANINGS
from shadow_server.command.root import PROGRAM, app

_HEAD = """\
# The command line

Made from the commands by `python -m shadow_server.command.document > docs/cli.md`; a test compares the two.

`shadowserve serve`, `demo` and `tenants` work on this machine; `adapters`, `chat`, `top` and `doctor` talk to a
server and start without torch and vLLM. `adapters convert` needs no server.

```
shadowserve serve Qwen/Qwen3-8B --adapter math=./math --adapter-root ./adapters
shadowserve adapters load legal out/legal           # a folder of this machine, with progress
shadowserve adapters list
shadowserve chat --adapter legal
shadowserve top
shadowserve doctor
```

**Where the server is.** `--url`, or `SHADOW_SERVER_URL`; `http://localhost:8000` without either.

**With which key.** `--key-file FILE`, or `SHADOW_SERVER_KEY`. `--key KEY` works too and is moved out of the process
list at once, but shells keep a history. A key is in no output.

**Output.** Results go to standard output, everything else to standard error. `--json` writes one JSON value, and
errors, a wrong command line aside, as `{"error": {"message", "code", "request_id"}}` to standard error. Colour is for
terminals and off with `NO_COLOR`; progress bars are for terminals only. Control characters in names, messages and, on
a terminal, in answers are spelt out (`\\x1b`).

**Completion.** `shadowserve --install-completion` for bash, zsh and fish; names of adapters are asked of the server.

**Conversion.** `adapters convert` writes the other format where it can compute the same to the last bit of its
weights, and says why where not: the formats put the shadow state through different functions between two layers, so
an adapter that corrects several layers has one format only. Within its own format a checkpoint is written anew,
without a trainer's prefixes, and keeps its digest.

## Exit status

| status | meaning |
|---|---|
"""

_PIPE = "\\|"
_COMMON = ("url", "key", "key_file", "json")

_OWN_PARSERS = """
## shadowserve serve

`shadowserve serve MODEL [OPTIONS]`: serve a base model and adapters. Any vLLM serving option is taken; `shadowserve
serve --help` lists all, those of adapters and slots among them. The HTTP server's own:

"""


def render() -> str:
    """Return the whole document."""
    rows = "".join(f"| {int(code)} | {meaning} |\n" for code, meaning in MEANINGS.items())
    parts = [_HEAD, rows, _common_options(), _OWN_PARSERS, _table(_argparse_rows(_server_parser()))]
    parts += _argparse_commands()
    parts += [text for path, command in _commands() for text in _render(path, command)]
    return "".join(parts)


def _common_options() -> str:
    parameters = _parameters(adapters.list_adapters)
    rows = [(_spelled_parameter(p), _described(p)) for p in parameters if p.name in _COMMON]
    head = "\n## Options of every command that talks to a server\n\n"
    note = "\n`adapters convert`, which talks to none, takes `--json` only.\n"
    return head + _table(rows) + note


def _server_parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    add_server_arguments(parser)
    return parser


def _argparse_commands() -> Iterator[str]:
    from shadow_server.demo_command import make_parser as demo_parser
    from shadow_server.tenancy.command import make_parser as tenants_parser

    yield f"\n## {PROGRAM} demo\n\nServe and try the shipped demo.\n\n"
    yield _table(_argparse_rows(demo_parser()))
    for action in tenants_parser()._actions:
        if isinstance(action, _SubParsersAction):
            for name, parser in action.choices.items():
                yield f"\n## {PROGRAM} tenants {name}\n\n{parser.description}\n\n"
                yield _table(_argparse_rows(parser))


def _argparse_rows(parser: ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if action.help is not SUPPRESS and action.dest != "help":
            yield _spelled(action), _sentence(action.help or "")


def _spelled(action: Action) -> str:
    value = action.metavar
    if isinstance(value, tuple):
        value = " ".join(value)
    if value is None and action.choices is not None:
        value = "|".join(map(str, action.choices))
    if not action.option_strings:
        return f"`{value or action.dest}`"
    # A switch takes no value.
    takes = action.nargs != 0
    return (
        f"`{', '.join(action.option_strings)}{f' {value or action.dest.upper()}' if takes else ''}`"
    )


def _commands() -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield the full name and the function of everything that typer parses."""
    yield from _functions(app.registered_groups)
    for command in app.registered_commands:
        function = command.callback
        if function is not None and not (command.context_settings or {}).get("allow_extra_args"):
            yield command.name or function.__name__, function


def _functions(groups: Iterable[Any]) -> Iterator[tuple[str, Callable[..., None]]]:
    for group in groups:
        for command in group.typer_instance.registered_commands:
            yield f"{group.name} {command.name or command.callback.__name__}", command.callback


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter of a command: its name, type, typer's own words on it, and its default."""

    name: str
    kind: Any
    info: Any
    default: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, typer.models.ArgumentInfo)

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


def _parameters(function: Callable[..., None]) -> list[_Parameter]:
    hints = get_type_hints(function, include_extras=True)
    made = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])[:2]
        made.append(_Parameter(name, kind, info, parameter.default))
    return made


def _render(path: str, function: Callable[..., None]) -> Iterator[str]:
    parameters = _parameters(function)
    words = [_argument(p) for p in parameters if p.is_argument]
    yield f"\n## {PROGRAM} {path}\n\n`{' '.join([PROGRAM, path, *words, '[OPTIONS]'])}`\n\n"
    yield f"{inspect.getdoc(function)}\n\n"
    yield _table(
        (_spelled_parameter(p), _described(p)) for p in parameters if p.name not in _COMMON
    )


def _argument(parameter: _Parameter) -> str:
    name = parameter.name.upper()
    if get_origin(parameter.kind) is list:
        name += "..."
    return name if parameter.is_required else f"[{name}]"


def _spelled_parameter(parameter: _Parameter) -> str:
    if parameter.is_argument:
        return f"`{_argument(parameter)}`"
    flag = parameter.name.replace("_", "-")
    given = _given_names(parameter.info)
    if parameter.kind is bool:
        return f"`{' '.join(given) if given else f'--{flag} / --no-{flag}'}`"
    return f"`{(given or [f'--{flag}'])[0]} {_value(parameter.kind)}`"


def _given_names(info: Any) -> list[str]:
    # typer takes the first name for a default until it sees the dashes.
    words = (info.default, *(info.param_decls or ()))
    return [word for word in words if isinstance(word, str) and word.startswith("-")]


def _value(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    inner = [k for k in get_args(kind) if k is not type(None)]
    return _value(inner[0]) if inner else _VALUES[kind]


_VALUES = {str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}


def _described(parameter: _Parameter) -> str:
    text = _sentence(parameter.info.help or "")
    if parameter.is_required and not parameter.is_argument:
        text += " Required."
    elif not parameter.is_required and parameter.default not in (None, False, True):
        text += f" Default: {parameter.default}."
    return text + (f" Or `{parameter.info.envvar}`." if parameter.info.envvar else "")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', ':')) or not text else '.'}"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {left.replace('|', _PIPE)} | {right} |\n" for left, right in rows]
    return "".join(["| | |\n|---|---|\n", *lines]) if lines else ""


if __name__ == "__main__":
    sys.stdout.write(render())
