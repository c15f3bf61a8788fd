"""Starting and stopping the HTTP server on vLLM's launcher.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop
import vllm.envs as envs
from fastapi import FastAPI
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args, init_logger

from shadow_runtime.catalog import base_fingerprint
from shadow_runtime.errors import ConfigError, ShadowError
from shadow_runtime.registry import (
    AdapterRegistry,
    RegistrySettings,
    open_catalog,
    open_registry,
)
from shadow_runtime.sandbox import SandboxValidator
from shadow_runtime.switch_interval import shorten_switch_interval
from shadow_runtime.types import AdapterManifest, BaseGeometry
from shadow_runtime.vllm_bridge.control import EngineControl
from shadow_runtime.vllm_bridge.engine_args import (
    StartPlan,
    describe_slots,
    plan_start,
    shadow_engine_args,
)
from shadow_runtime.vllm_bridge.serving_args import (
    LifecycleOptions,
    check_names,
    default_state_dir,
    lifecycle_options,
    make_parser,
    named_adapter,
    parse,
    slot_options,
)
from shadow_runtime.vllm_bridge.serving_engine import VllmEngine

# vLLM configures only loggers below its own name.
logger: logging.Logger = init_logger("vllm.shadow_runtime.serving")

_KEEP_ALIVE_SECONDS = 75

Attach = Callable[[VllmEngine, Namespace], FastAPI]


def main(
    arguments: list[str],
    add_arguments: Callable[[ArgumentParser], None],
    check: Callable[[Namespace], None],
    attach: Attach,
) -> int:
    """Run `shadowserve serve`: returns the exit status.

    Args:
        arguments: the command line after `serve`.
        add_arguments: adds the server's own options.
        check: raises ConfigError for options that contradict each other; nothing has been started then.
        attach: makes the application of the started engine.
    """
    cli_env_setup()
    parser = make_parser()
    add_arguments(parser)
    args = parse(parser, arguments)
    configure_logging_from_args(args)
    try:
        check(args)
        plan = _plan(args)
        # Registry, store and sandbox work in threads beside the loop that streams answers.
        shorten_switch_interval()
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
        plan = plan_start(
            args.model,
            args.adapter,
            slot_options(args),
            revision=args.revision,
            registered=partial(_registered, args),
        )
    except (OSError, ValueError) as error:
        # What transformers says about a model that is not there or not readable.
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the base model {args.model!r} cannot be read: {reason}") from error
    plan = replace(plan, config=replace(plan.config, has_server=True))
    for name, value in shadow_engine_args(plan.config, vars(args)).items():
        setattr(args, name, value)
    return plan


def _database_url(options: LifecycleOptions) -> str | None:
    return None if options.registry_url is None else options.registry_url.reveal()


def _registered(args: Namespace, base: BaseGeometry) -> list[AdapterManifest]:
    """Return what answers in the registry of an earlier run."""
    fingerprint = base_fingerprint(base)
    args.state_dir = args.state_dir or default_state_dir(fingerprint)
    catalog = open_catalog(args.state_dir, fingerprint, _database_url(lifecycle_options(args)))
    try:
        records = catalog.changes_since(0).adapters
    finally:
        catalog.close()
    current = (v for r in records for v in r.versions if v.version == r.current)
    return [version.artifact.manifest for version in current]


async def _serve(args: Namespace, plan: StartPlan, attach: Attach) -> None:
    # Until uvicorn runs, SIGTERM ends the start; the launcher installs its own handlers later.
    signal.signal(signal.SIGTERM, _interrupt)
    address, sock = setup_server(args, reuse_port=False)
    options = lifecycle_options(args)
    validator = SandboxValidator(
        plan.base,
        plan.config,
        max_memory_bytes=options.validation_bytes,
        max_seconds=options.validation_seconds,
    )
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(validator.close)
            await validator.spawn()
            client = await stack.enter_async_context(build_async_engine_client(args))
            await validator.start()
            tasks = await client.get_supported_tasks()
            for line in describe_slots(plan, client.model_config.dtype.itemsize):
                logger.info(line)
            control = EngineControl(client, plan)
            registry = await _open_registry(args, options, plan, control, validator)
            stack.push_async_callback(registry.close)
            engine = VllmEngine(client, args, plan, tuple(tasks), registry, control)
            await _publish_named(registry, args)
            args.max_num_seqs = _max_running_requests(client)
            app = attach(engine, args)
            await engine.bind(app)
            logger.info("Serving %s on %s", ", ".join(engine.base_names), address)
            stopping = await serve_http(app, **_launch_options(args, sock))
        # After the engine: vLLM's launcher hands back what is left of the HTTP server.
        await stopping
    finally:
        sock.close()


def _max_running_requests(client: EngineClient) -> int:
    """Return how many sequences the engine runs at once: what the server's queue stands in front of."""
    config = client.vllm_config
    replicas: int = config.parallel_config.data_parallel_size
    return replicas * config.scheduler_config.max_num_seqs


async def _open_registry(
    args: Namespace,
    options: LifecycleOptions,
    plan: StartPlan,
    control: EngineControl,
    validator: SandboxValidator,
) -> AdapterRegistry:
    settings = RegistrySettings(
        max_host_adapters=plan.config.max_host_adapters,
        max_host_bytes=options.max_host_bytes,
        adapter_wait_seconds=options.adapter_wait_seconds,
        max_versions=options.max_versions,
    )
    logger.info("Adapters are registered and stored in %s", args.state_dir)
    return await open_registry(
        control,
        validator,
        state_dir=args.state_dir,
        base_fingerprint=base_fingerprint(plan.base),
        database_url=_database_url(options),
        settings=settings,
    )


async def _publish_named(registry: AdapterRegistry, args: Namespace) -> None:
    for adapter in args.adapter:
        name = named_adapter(adapter.name)
        staged = await asyncio.to_thread(
            registry.store.stage_directory,
            adapter.path,
            adapter.backbone_config,
            source_label=f"command line {adapter.path.name}",
        )
        entry = (await registry.publish(name, staged)).entry
        logger.info("Adapter %s version %d: %s", name.display, entry.version, entry.digest)


def _launch_options(args: Namespace, sock: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "sock": sock,
        "enable_ssl_refresh": args.enable_ssl_refresh,
        "host": args.host,
        "port": args.port,
        "log_level": args.uvicorn_log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_keep_alive": _keep_alive_seconds(),
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


def _keep_alive_seconds() -> int:
    # A request that is sent while an idle connection is closed is lost. Proxies keep theirs for a minute, vLLM for 5 s.
    if "VLLM_HTTP_TIMEOUT_KEEP_ALIVE" in os.environ:
        return envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE
    return _KEEP_ALIVE_SECONDS


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("terminated")
