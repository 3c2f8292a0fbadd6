"""A tier of GPT-2 (124M parameters, random weights), against training passes of 2 x 128 tokens.

With ``--billion`` instead: the memory that tier 1 of a GPT-2 with 1.1B parameters takes in fp32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from measure import compare, python, run, show

GOALS = {1: 12, 2: 80}  # passes
GOAL_MEMORY = 1.3
GOAL_GIB = 24

BUILD = """
import json, statistics, time
import torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(SIZES))
"""
BILLION = "n_embd=1536, n_layer=36, n_head=16"
PASSES = """
ids = torch.randint(50000, (2, 128))
walls, cpus = [], []
for _ in range(3):
    model.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    model(ids, labels=ids, use_cache=False).loss.backward()
    walls.append(time.perf_counter() - wall)
    cpus.append(time.process_time() - cpu)
print(json.dumps([statistics.median(walls), statistics.median(cpus)]))
"""
CHECKS = """
from pytest_transformer_validate import validate
from pytest_transformer_validate.probe import probe
wall, cpu = time.perf_counter(), time.process_time()
result = validate(model, model.config, tier=TIER)
times = [time.perf_counter() - wall, time.process_time() - cpu]
slow = sorted(((r.seconds, r.name, r.status) for r in result), reverse=True)[:12]
for seconds, name, status in slow:
    print(f"    {seconds:6.2f} s  {name} {status}")
print(f"    {model.num_parameters() * 4 / 2**30:.2f} GiB of weights, failed:", result.failures)
print(json.dumps(times))
"""


def main() -> None:
    """Print the one or the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tier", type=int, choices=sorted(GOALS), default=1)
    parser.add_argument("--billion", action="store_true", help="memory of 1.1B parameters, once")
    options = parser.parse_args()
    if options.billion:
        billion()
    else:
        time_and_memory(options.rounds, options.tier)


def billion() -> None:
    """Print what one run over 1.1B parameters in fp32 takes."""
    with tempfile.TemporaryDirectory() as name:
        checks = CHECKS.replace("TIER", "1")
        used = run(python(BUILD.replace("SIZES", BILLION) + checks), Path(name))
    wall, cpu = _times(used.output)
    peak = used.peak / 2**10
    print("GPT-2 with 1.1B parameters in fp32, one run")
    print("\n".join(used.output.splitlines()[-14:-1]))
    print(f"  tier 1: {wall:.0f} s wall, {cpu:.0f} s CPU; peak memory {peak:.1f} GiB")
    print(f"  fits {GOAL_GIB} GiB: {'met' if peak < GOAL_GIB - 1 else 'missed'}")


def time_and_memory(rounds: int, tier: int) -> None:
    """Print time and memory of a tier of GPT-2 124M, against training passes."""
    build, code = BUILD.replace("SIZES", ""), CHECKS.replace("TIER", str(tier))
    passes, checks = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(rounds):
            passes.append(run(python(build + PASSES), folder))
            checks.append(run(python(build + code), folder))
    print(f"GPT-2 124M, {rounds} pairs of processes; slowest checks of the last one:")
    print("\n".join(checks[-1].output.splitlines()[-14:-1]))
    one, all_checks = ([_times(u.output) for u in used] for used in (passes, checks))
    for index, kind in enumerate(("wall", "CPU")):
        show(f"forward and backward of 2 x 128, {kind}", [t[index] for t in one])
        show(f"tier {tier}, {kind}", [t[index] for t in all_checks])
        ratios = [a[index] / b[index] for a, b in zip(all_checks, one, strict=True)]
        compare(f"tier {tier} / passes, {kind}", ratios, GOALS[tier])
    show("three passes, peak memory", [u.peak for u in passes], "MB")
    show(f"tier {tier}, peak memory", [u.peak for u in checks], "MB")
    peaks = [a.peak / b.peak for a, b in zip(checks, passes, strict=True)]
    compare("peak memory", peaks, GOAL_MEMORY)


def _times(output: str) -> list[float]:
    """Wall and CPU seconds in the last line."""
    return [float(value) for value in json.loads(output.splitlines()[-1])]


if __name__ == "__main__":
    main()
