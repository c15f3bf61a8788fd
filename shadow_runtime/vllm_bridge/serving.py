"""Starting and stopping the HTTP server on vLLM's launcher.

Runs in: API process.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import uvloop
import vllm.envs as envs
from fastapi import FastAPI
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args, init_logger

from shadow_runtime.errors import ConfigError, ShadowError
from shadow_runtime.vllm_bridge.engine_args import (
    StartPlan,
    describe_slots,
    plan_start,
    shadow_engine_args,
)
from shadow_runtime.vllm_bridge.serving_args import (
    check_names,
    make_parser,
    parse,
    slot_options,
)
from shadow_runtime.vllm_bridge.serving_engine import VllmEngine

# vLLM configures only loggers below its own name.
logger: logging.Logger = init_logger("vllm.shadow_runtime.serving")

Attach = Callable[[VllmEngine, Namespace], FastAPI]


def main(
    arguments: list[str], add_arguments: Callable[[ArgumentParser], None], attach: Attach
) -> int:
    """Run `shadowserve serve`: returns the exit status.

    Args:
        arguments: the command line after `serve`.
        add_arguments: adds the server's own options.
        attach: makes the application of the started engine.
    """
    cli_env_setup()
    parser = make_parser()
    add_arguments(parser)
    args = parse(parser, arguments)
    configure_logging_from_args(args)
    try:
        plan = _plan(args)
        uvloop.run(_serve(args, plan, attach))
    except ShadowError as error:
        sys.stderr.write(f"shadowserve serve: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _plan(args: Namespace) -> StartPlan:
    check_names(args)
    if args.model.startswith(("/", ".", "~")) and not os.path.exists(args.model):
        raise ConfigError(f"the base model {args.model!r} does not exist")
    try:
        plan = plan_start(args.model, args.adapter, slot_options(args), revision=args.revision)
    except (OSError, ValueError) as error:
        # What transformers says about a model that is not there or not readable.
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the base model {args.model!r} cannot be read: {reason}") from error
    for name, value in shadow_engine_args(plan.config, vars(args)).items():
        setattr(args, name, value)
    return plan


async def _serve(args: Namespace, plan: StartPlan, attach: Attach) -> None:
    # Until uvicorn runs, SIGTERM ends the start; the launcher installs its own handlers later.
    signal.signal(signal.SIGTERM, _interrupt)
    address, sock = setup_server(args, reuse_port=False)
    try:
        async with build_async_engine_client(args) as client:
            tasks = await client.get_supported_tasks()
            element_bytes = client.model_config.dtype.itemsize
            for line in describe_slots(plan, element_bytes):
                logger.info(line)
            engine = VllmEngine(client, args, plan, tuple(tasks))
            await _load_named(engine, args)
            app = attach(engine, args)
            await engine.bind(app)
            logger.info("Serving %s on %s", ", ".join(engine.base_names), address)
            stopping = await serve_http(app, **_launch_options(args, sock))
        # After the engine: vLLM's launcher hands back what is left of the HTTP server.
        await stopping
    finally:
        sock.close()


async def _load_named(engine: VllmEngine, args: Namespace) -> None:
    for adapter in args.adapter:
        config = None if adapter.backbone_config is None else str(adapter.backbone_config)
        outcome = await engine.adapters.load(adapter.name, str(adapter.path), config)
        logger.info("Adapter %s: %s", adapter.name, outcome.entry.digest)


def _launch_options(args: Namespace, sock: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "sock": sock,
        "enable_ssl_refresh": args.enable_ssl_refresh,
        "host": args.host,
        "port": args.port,
        "log_level": args.uvicorn_log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "ssl_cert_reqs": args.ssl_cert_reqs,
        "ssl_ciphers": args.ssl_ciphers,
        "h11_max_incomplete_event_size": args.h11_max_incomplete_event_size,
        "h11_max_header_count": args.h11_max_header_count,
    }
    log_config = get_uvicorn_log_config(args)
    return options if log_config is None else options | {"log_config": log_config}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("terminated")
