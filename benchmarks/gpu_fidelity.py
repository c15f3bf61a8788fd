"""The engine on a GPU, bf16 with CUDA graphs and torch.compile, against the reference packages.

    python benchmarks/gpu_fidelity.py --out benchmarks/results/gpu_fidelity.json

For Qwen3 and Llama shapes and every adapter kind, one mixed batch is generated greedily; the reference package then
computes the same token sequences without cache, once in fp32 from the bf16-rounded weights (the truth) and once in bf16
(what rounding alone does to the reference). Logprobs of the generated tokens are compared, and of the first few the
whole distributions. A position counts for token agreement when the truth's two best tokens are at least `--tie-margin`
apart. The pass bars: agreement >= 99%, Kullback-Leibler divergence of every distribution <= 5e-3, and the engine no
further from the truth than 1.5 times the reference's own bf16 (worst and mean).

The first family's engine is started again, now from vLLM's compile cache, and must give the same tokens; and stock vLLM
answers the same batch without adapters, to count how many logprobs of the rows without adapter are equal bit for bit.
`--eager` does only that, without compilation: the compiler fuses around our operator differently than without it, so
only there all of them can be equal.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]


def build(
    family: str, directory: Path, options: argparse.Namespace
) -> tuple[Path, dict[str, Path]]:
    """Write a base of a realistic width and one adapter of each kind (two of the first)."""
    import reference_adapters as support

    base = support.build_base(
        family,
        directory / "base",
        seed=1,
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=3 * options.hidden_size,
        vocab_size=4096,
        max_position_embeddings=2048,
    )
    adapters = {}
    for index, kind in enumerate(support.KINDS):
        extra: dict[str, Any] = {}
        if kind == "paper_explicit":
            extra["backbone"] = {
                "hidden_size": options.hidden_size // 2,
                "num_layers": 2,
                "num_heads": 16,
                "num_kv_heads": 8,
                "head_dim": 128,
                "vocab_size": 4096,
                "max_position_embeddings": 2048,
            }
        adapters[kind] = support.build_adapter(
            kind, base, directory / kind, seed=10 + index, **extra
        )
    return base, adapters


MAX_DIVERGENCE = 5e-3
NUM_DISTRIBUTIONS = 4  # of each request

ENGINE = {
    "dtype": "bfloat16",
    "max_logprobs": -1,
    "max_model_len": 1024,
    "max_num_batched_tokens": 512,
    "skip_tokenizer_init": True,
    "gpu_memory_utilization": 0.5,
    "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]},
}


def generate(
    base: Path,
    adapters: dict[str, Path] | None,
    rows: list[tuple[str | None, list[int]]],
    new_tokens: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answer all rows in one batch: twice, the second time from the prefix cache, then the first tokens with whole
    distributions. Stock vLLM without `adapters`.
    """
    from vllm import LLM, SamplingParams

    from shadow_runtime.vllm_bridge.offline import ShadowLLM

    started = time.perf_counter()
    sampling = SamplingParams(
        temperature=0, max_tokens=new_tokens, logprobs=0, ignore_eos=True, detokenize=False
    )
    whole = SamplingParams(
        temperature=0,
        max_tokens=NUM_DISTRIBUTIONS,
        logprobs=-1,
        ignore_eos=True,
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": tokens} for _, tokens in rows]
    status: dict[str, Any] = {}
    if adapters is None:
        stock = LLM(model=str(base), **ENGINE)
        status["start_s"] = time.perf_counter() - started
        passes = [stock.generate(prompts, s, use_tqdm=False) for s in (sampling, sampling, whole)]
        stock.llm_engine.engine_core.shutdown()
    else:
        llm = ShadowLLM(str(base), adapters, max_resident_adapters=len(adapters), **ENGINE)
        status["start_s"] = time.perf_counter() - started
        names = [name for name, _ in rows]
        passes = [llm.generate(prompts, s, adapters=names) for s in (sampling, sampling, whole)]
        status["runner"] = llm.worker_status()[0]["runner"]
        llm.shutdown()
    gc.collect()
    torch.cuda.empty_cache()
    return [_answer(*each) for each in zip(*passes, strict=True)], status


def _answer(first: Any, second: Any, third: Any) -> dict[str, Any]:
    out, whole = first.outputs[0], third.outputs[0]
    return {
        "tokens": list(out.token_ids),
        "logprobs": [step[t].logprob for step, t in zip(out.logprobs, out.token_ids, strict=True)],
        "repeat_tokens": list(second.outputs[0].token_ids),
        "cached": second.num_cached_tokens,
        "first_tokens": list(whole.token_ids),
        "distributions": [{t: p.logprob for t, p in step.items()} for step in whole.logprobs],
    }


def divergences(exact: torch.Tensor, tokens: list[int], answer: dict[str, Any]) -> list[float]:
    """Return the Kullback-Leibler divergence of the engine's distribution from the truth, position by position.

    Args:
        exact: (num_tokens, vocab) fp32 logprobs of the positions that generated `tokens`.
        tokens: generated; what follows the first one that differs in the other pass has another context.
        answer: `first_tokens` and `distributions` of that pass.
    """
    found = []
    for place, step in enumerate(answer["distributions"]):
        if tokens[:place] != answer["first_tokens"][:place]:
            break
        engine = torch.full_like(exact[place], float("-inf"))
        engine[list(step)] = torch.tensor(list(step.values())).to(engine)
        found.append((exact[place].exp() * (exact[place] - engine)).sum().item())
    return found


def restart_and_stock(
    base: Path,
    adapters: dict[str, Path],
    rows: list[tuple[str | None, list[int]]],
    answers: list[dict[str, Any]],
    new_tokens: int,
) -> dict[str, Any]:
    """Return what a start from the compile cache and stock vLLM say of the same batch."""
    again, warm = generate(base, adapters, rows, new_tokens)
    stock, plain = generate(base, None, rows, new_tokens)
    pairs = [
        (ours, theirs)
        for (name, _), answer, other in zip(rows, answers, stock, strict=True)
        if name is None
        for ours, theirs in zip(answer["logprobs"], other["logprobs"], strict=True)
    ]
    return {
        "warm_start_s": warm["start_s"],
        "stock_start_s": plain["start_s"],
        "warm_tokens_equal": [a["tokens"] for a in again] == [a["tokens"] for a in answers],
        "base_logprobs": len(pairs),
        "base_logprobs_bit_equal_to_stock": sum(ours == theirs for ours, theirs in pairs),
        "base_logprobs_worst_difference": max(abs(ours - theirs) for ours, theirs in pairs),
    }


@functools.cache
def reference_model(
    kind: str | None, base: Path, adapter: Path | None, dtype: torch.dtype
) -> torch.nn.Module:
    """Return the reference package's model, its weights rounded to bf16, on the device in `dtype`."""
    import reference_adapters as support

    model = (
        support.load_base(base) if kind is None else support.load_adapter_model(kind, base, adapter)
    )
    return model.to("cuda", torch.bfloat16).to(dtype)


@torch.no_grad()
def truth(
    kind: str | None, base: Path, adapter: Path | None, tokens: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """Return the reference's logprobs (num_tokens, vocab) in fp32, its weights rounded to bf16, computed in `dtype`."""
    model = reference_model(kind, base, adapter, dtype)
    logits = model(input_ids=torch.tensor([tokens], device="cuda"), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def compare(
    row: tuple[str | None, list[int]],
    answer: dict[str, Any],
    base: Path,
    adapters: dict[str, Path],
    margin: float,
) -> dict[str, Any]:
    """Return how far one row's answer is from the reference."""
    kind, prompt = row
    adapter = None if kind is None else adapters[kind]
    sequence = prompt + answer["tokens"]
    span = slice(len(prompt) - 1, len(sequence) - 1)
    exact = truth(kind, base, adapter, sequence, torch.float32)[span]
    rounded = truth(kind, base, adapter, sequence, torch.bfloat16)[span]
    bare = exact if kind is None else truth(None, base, None, sequence, torch.float32)[span]
    chosen = torch.tensor(answer["tokens"], device="cuda").unsqueeze(1)
    expected = exact.gather(1, chosen).squeeze(1)
    engine = (torch.tensor(answer["logprobs"], device="cuda") - expected).abs()
    reference = (rounded.gather(1, chosen).squeeze(1) - expected).abs()
    divergence = divergences(exact, answer["tokens"], answer)
    top = exact.topk(2, dim=-1)
    clear = (top.values[:, 0] - top.values[:, 1]) >= margin
    agree = top.indices[:, 0] == chosen.squeeze(1)
    return {
        "row": kind or "base",
        "prompt_tokens": len(prompt),
        "engine_max": engine.max().item(),
        "engine_mean": engine.mean().item(),
        "reference_bf16_max": reference.max().item(),
        "reference_bf16_mean": reference.mean().item(),
        "clear": int(clear.sum()),
        "ties": int((~clear).sum()),
        "agree": int((agree & clear).sum()),
        "from_base": (exact - bare).abs().max().item(),
        "divergence_max": max(divergence),
        "distributions": len(divergence),
        "repeat_equal": answer["tokens"] == answer["repeat_tokens"],
        "cached": answer["cached"],
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one family's figures over the rows with an adapter, the base's beside them, and the verdict."""

    def side(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        clear = sum(r["clear"] for r in chosen)
        return {
            "agreement": sum(r["agree"] for r in chosen) / clear,
            "clear": clear,
            "ties": sum(r["ties"] for r in chosen),
            "distributions": sum(r["distributions"] for r in chosen),
            **{
                key: max(r[key] for r in chosen)
                for key in ("engine_max", "reference_bf16_max", "divergence_max")
            },
            **{
                key: sum(r[key] for r in chosen) / len(chosen)
                for key in ("engine_mean", "reference_bf16_mean")
            },
        }

    adapted = side([r for r in rows if r["row"] != "base"])
    bare = side([r for r in rows if r["row"] == "base"])
    passed = (
        adapted["agreement"] >= 0.99
        and adapted["divergence_max"] <= MAX_DIVERGENCE
        and adapted["engine_max"] <= 1.5 * adapted["reference_bf16_max"]
        and adapted["engine_mean"] <= 1.5 * adapted["reference_bf16_mean"]
        and all(r["from_base"] > 0.05 for r in rows if r["row"] != "base")
    )
    return {"adapters": adapted, "base": bare, "passed": passed, "rows": rows}


def build_rows(adapters: dict[str, Path], count: int) -> list[tuple[str | None, list[int]]]:
    """Return requests without adapter and of each adapter in turn, prompts of 20 to 719 random tokens."""
    generator = torch.Generator().manual_seed(7)
    names = itertools.islice(itertools.cycle([None, *adapters]), count)
    return [
        (name, torch.randint(5, 4000, (20 + 37 * i % 700,), generator=generator).tolist())
        for i, name in enumerate(names)
    ]


def run_family(family: str, options: argparse.Namespace, *, is_first: bool) -> dict[str, Any]:
    """Return the report of one family."""
    with tempfile.TemporaryDirectory() as name:
        base, adapters = build(family, Path(name), options)
        rows = build_rows(adapters, options.requests)
        answers, status = generate(base, adapters, rows, options.new_tokens)
        extra = {"cold_start_s": status["start_s"], "runner": status["runner"]}
        if options.eager or (is_first and not options.no_restart):
            extra |= restart_and_stock(base, adapters, rows, answers, options.new_tokens)
        if options.eager:
            return extra | {
                "passed": extra["base_logprobs"] == extra["base_logprobs_bit_equal_to_stock"]
            }
        figures = [
            compare(row, answer, base, adapters, options.tie_margin)
            for row, answer in zip(rows, answers, strict=True)
        ]
    reference_model.cache_clear()
    return summarize(figures) | extra


def main() -> None:
    """Run both families and write the report."""
    from environment import environment

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", type=lambda t: t.split(","), default=["qwen3", "llama"])
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tie-margin", type=float, default=0.05)
    parser.add_argument(
        "--no-restart", action="store_true", help="leave out the second and the stock engine"
    )
    parser.add_argument(
        "--eager", action="store_true", help="only compare base rows with stock vLLM, uncompiled"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.eager:
        ENGINE.update(enforce_eager=True)
        del ENGINE["compilation_config"]
    report: dict[str, Any] = {"environment": environment(), "families": {}}
    for index, family in enumerate(options.families):
        report["families"][family] = run_family(family, options, is_first=index == 0)
        shown = {k: v for k, v in report["families"][family].items() if k != "rows"}
        print(json.dumps({family: shown}), flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if not all(f["passed"] for f in report["families"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
