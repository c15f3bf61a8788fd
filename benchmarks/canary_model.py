"""The canary base that a benchmark of the adapters' life serves: a tiny one, or the shape of Qwen3-8B on a GPU."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from canary_server import CPU_OPTIONS
from version_canary import QWEN3_8B, CanaryShape


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--layers` and the server's own options."""
    parser.add_argument("--model", choices=["tiny", "8b"], default="tiny")
    parser.add_argument("--layers", type=int, help="base layers instead of the shape's own")
    parser.add_argument("options", nargs="*", help="of the server, after --")


def shape_of(options: argparse.Namespace) -> CanaryShape:
    """Return the base's sizes."""
    shape = QWEN3_8B if options.model == "8b" else CanaryShape()
    return dataclasses.replace(shape, num_layers=options.layers or shape.num_layers)


def formats_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the formats to start with: in the peft format an adapter of the 8B shape has a whole layer, 0.4 GB."""
    return ("paper", "peft") if options.model == "tiny" else ("paper",)


def engine_options(
    options: argparse.Namespace, *defaults: str, cpu_defaults: Sequence[str] = ()
) -> list[str]:
    """Return the server's options for the kind of engine.

    Args:
        options: parsed; what they say of the server comes last and so wins.
        defaults: of the benchmark.
        cpu_defaults: for an engine on a CPU alone.
    """
    if options.model == "tiny" and not has_gpu():
        return [*CPU_OPTIONS, *defaults, *cpu_defaults, *options.options]
    gpu_options = ("--dtype", "bfloat16", "--gpu-memory-utilization", "0.8")
    return [*gpu_options, *defaults, *options.options]


def has_gpu() -> bool:
    """Return whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()
