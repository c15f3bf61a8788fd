"""The `serve` command line: vLLM's own options, and the ones of adapters.

Runs in: API process.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from argparse import ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from shadow_runtime.errors import ConfigError
from shadow_runtime.registry.name import parse_adapter as parse_name
from shadow_runtime.slots.derive import SlotOptions
from shadow_runtime.types import DEFAULT_TENANT, AdapterName
from shadow_runtime.vllm_bridge.engine_args import NamedAdapter
from shadow_runtime.vllm_bridge.secret_url import SecretUrl, has_password

DRAIN_SECONDS = 30
"""How long running requests may take after SIGTERM, unless --shutdown-timeout says otherwise."""

_PROGRAM = "shadowserve serve"


class ServeParser(FlexibleArgumentParser):
    """vLLM's parser, with errors of one line instead of a screen of usage."""

    def parse_args(  # type: ignore[override]
        self, args: list[str] | None = None, namespace: Namespace | None = None
    ) -> Namespace:
        """Parse as vLLM does, without its warning about options that are meant to be repeated."""
        source = logging.getLogger(FlexibleArgumentParser.__module__)
        source.addFilter(self._is_news)
        try:
            return super().parse_args(args, namespace)
        finally:
            source.removeFilter(self._is_news)

    def _is_news(self, record: logging.LogRecord) -> bool:
        prefix, _, options = record.getMessage().partition("Found duplicate keys ")
        repeatable = {
            name
            for name, action in self._option_string_actions.items()
            if isinstance(action.default, list)
        }
        return bool(prefix) or not set(options.split(", ")) <= repeatable

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and the option that was probably meant; exit with status 2."""
        hint = f"try: {_PROGRAM} --help"
        unknown = re.fullmatch(r"unrecognized arguments: (--[\w-]+).*", message, re.DOTALL)
        if unknown is not None:
            message = f"unknown option {unknown.group(1)}"
            known = list(self._option_string_actions)
            close = difflib.get_close_matches(unknown.group(1), known, 1, 0.8)
            hint = f"did you mean {close[0]}?" if close else hint
        sys.stderr.write(f"{_PROGRAM}: {message} ({hint})\n")
        sys.exit(2)


def make_parser() -> ServeParser:
    """Return the parser of every vLLM serving option plus ours."""
    parser = make_arg_parser(
        ServeParser(
            prog=_PROGRAM,
            description="Serve a base model and ShadowPEFT adapters over the OpenAI API.",
        )
    )
    group = parser.add_argument_group(
        "ShadowPEFT", "Adapters, and the memory that is set aside for them."
    )
    _add_adapter_options(group)
    _add_lifecycle_options(group)
    _add_storage_options(group)
    parser.set_defaults(shutdown_timeout=DRAIN_SECONDS)
    return parser


def _add_adapter_options(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=parse_adapter,
        metavar="[TENANT/]NAME=PATH[,backbone_config=FILE]",
        help="Serve the adapter at PATH as NAME, from the start; repeatable.",
    )
    defaults = SlotOptions()
    for option, text in _SLOT_OPTIONS.items():
        group.add_argument(
            f"--{option.replace('_', '-')}",
            type=_positive_int,
            default=getattr(defaults, option),
            metavar="N",
            help=text,
        )


def _add_lifecycle_options(group: _ArgumentGroup) -> None:
    lifecycle = LifecycleOptions()
    for option, text in _LIFECYCLE_OPTIONS.items():
        group.add_argument(
            f"--{option.replace('_', '-')}",
            type=_positive_float,
            default=getattr(lifecycle, option),
            metavar="SECONDS",
            help=f"{text} Default: %(default)s.",
        )


def _add_storage_options(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="Where the registry and the adapters' bytes are kept; default: a directory per base model "
        "below $XDG_STATE_HOME or ~/.local/state.",
    )
    group.add_argument(
        "--registry-url",
        type=SecretUrl,
        metavar="URL",
        help="Database of the registry, shared by replicas: postgresql://... Default: SQLite in the state directory. "
        "A process list shows a password in it: better give that in PGPASSWORD or a PGPASSFILE.",
    )
    group.add_argument(
        "--max-versions",
        type=_positive_int,
        default=LifecycleOptions().max_versions,
        metavar="N",
        help="Versions of each name that are kept, 2 or more; a publish forgets the oldest. Default: %(default)s.",
    )
    group.add_argument(
        "--max-host-bytes",
        type=_positive_int,
        metavar="BYTES",
        help="Host memory that adapters may take together; default: bounded by their number.",
    )
    group.add_argument(
        "--validation-bytes",
        type=_positive_int,
        default=LifecycleOptions().validation_bytes,
        metavar="BYTES",
        help="Memory that the check of one adapter may take. Default: %(default)s.",
    )


@dataclass(frozen=True, slots=True)
class LifecycleOptions:
    """What the operator may set about registering and loading adapters.

    Attributes:
        state_dir: directory of the registry and the store; None for the default of the base model.
        registry_url: database that replicas share; None for SQLite in the state directory.
        adapter_wait_seconds: how long a request waits for an adapter that is not in memory.
        max_adapter_wait_seconds: how long a request waits for its adapter's turn in a slot.
        max_host_bytes: host memory of all held adapters, None without a bound.
        max_versions: how many of the newest versions of each name are kept.
        validation_seconds, validation_bytes: bounds of one adapter's check.
    """

    state_dir: Path | None = None
    registry_url: SecretUrl | None = None
    adapter_wait_seconds: float = 30.0
    max_adapter_wait_seconds: float = 5.0
    max_host_bytes: int | None = None
    max_versions: int = 100
    validation_seconds: float = 60.0
    validation_bytes: int = 8 << 30


def lifecycle_options(args: Namespace) -> LifecycleOptions:
    """Return the lifecycle options of a parsed command line."""
    names = [field.name for field in fields(LifecycleOptions)]
    return LifecycleOptions(**{name: getattr(args, name) for name in names})


def default_state_dir(fingerprint: str) -> Path:
    """Return where a server keeps what it knows about a base: below $XDG_STATE_HOME or ~/.local/state."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "shadowserve" / fingerprint.removeprefix("sha256:")[:16]


_SLOT_OPTIONS = {
    "shadow_layers": "Depth of the implicit slot class; default: derived from the adapters, else 1.",
    "shadow_intermediate_size": "MLP width of the implicit slot class; default: derived, else 256.",
    "shadow_heads": "Query heads of the implicit slot class; default: derived, else the base's.",
    "max_injection_rank": "Widest injection bottleneck; default: derived, else 16.",
    "max_gate_size": "Widest gate bottleneck; default: derived, else 10.",
    "max_resident_adapters": "Adapters that device memory holds and one step may mix.",
    "max_host_adapters": "Adapters that host memory holds.",
    "max_pinned_adapters": "Slots beyond those, so that pinned adapters take none from the others.",
    "adapter_quantum_tokens": "Tokens that an adapter is served before another one that waits for a slot.",
}

_LIFECYCLE_OPTIONS = {
    "adapter_wait_seconds": "How long a request waits for an adapter that is not in memory.",
    "max_adapter_wait_seconds": "How long a request waits for its adapter's turn in a slot.",
    "validation_seconds": "How long the check of one adapter may take.",
}


def parse_adapter(text: str) -> NamedAdapter:
    """Return the adapter of one `--adapter` value; raises ArgumentTypeError when it is malformed."""
    name, equals, rest = text.partition("=")
    path, comma, config = rest.partition(",backbone_config=")
    if not equals or not path or (comma and not config):
        raise ArgumentTypeError(f"{text!r} is not NAME=PATH or NAME=PATH,backbone_config=FILE")
    named_adapter(name)
    return NamedAdapter(name, Path(path).absolute(), Path(config).absolute() if config else None)


def named_adapter(text: str) -> AdapterName:
    """Return the adapter name that `name` or `tenant/name` means; raises ArgumentTypeError for anything else."""
    parsed = parse_name(text, DEFAULT_TENANT)
    if parsed is None or parsed[1] is not None:
        raise ArgumentTypeError(
            f"{text!r} is no adapter name: 1 to 128 letters, digits, '.', '_' or '-', after TENANT/ if it is a tenant's"
        )
    return parsed[0]


def parse(parser: ServeParser, arguments: Sequence[str]) -> Namespace:
    """Return the parsed and checked command line; exits with status 2 and one line otherwise."""
    args = parser.parse_args(list(arguments))
    if args.model_tag is not None:
        args.model = args.model_tag
    elif not any(a == "--model" or a.startswith("--model=") for a in arguments):
        parser.error("name the base model: a directory or a repository")
    for reason in _refusals(args):
        parser.error(reason)
    try:
        validate_parsed_serve_args(args)
    except (TypeError, ValueError) as error:
        parser.error(str(error).removeprefix("Error: "))
    return args


def slot_options(args: Namespace) -> SlotOptions:
    """Return the slot options of a parsed command line."""
    chosen = {option: getattr(args, option) for option in _SLOT_OPTIONS}
    return SlotOptions(**chosen, max_adapter_wait_seconds=args.max_adapter_wait_seconds)


def check_names(args: Namespace) -> None:
    """Raise ConfigError when two adapters, or an adapter and the base, have one name."""
    taken = set(args.served_model_name or [args.model])
    for adapter in args.adapter:
        if adapter.name in taken:
            raise ConfigError(f"the name '{adapter.name}' is given twice")
        taken.add(adapter.name)


def _refusals(args: Namespace) -> list[str]:
    checks = {
        "--lora-modules: ShadowPEFT adapters are named with --adapter": args.lora_modules,
        "--grpc: only HTTP is served": args.grpc,
        # vLLM logs it as it is.
        "--otlp-traces-endpoint: no password here; OTEL_EXPORTER_OTLP_HEADERS carries credentials": (
            has_password(args.otlp_traces_endpoint or "")
        ),
        "--max-versions: a rollback needs at least 2": args.max_versions < 2,
        "--headless: every node needs its API server": args.headless,
        "--api-server-count: one API process holds the adapter names": (
            args.api_server_count not in (None, 1)
        ),
        "--data-parallel-multi-port-external-lb: start one server per rank": (
            args.data_parallel_multi_port_external_lb
        ),
    }
    return [reason for reason, is_refused in checks.items() if is_refused]


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _positive_int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
