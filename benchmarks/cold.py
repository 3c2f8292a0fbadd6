"""A whole run over one tiny model, against importing torch; and each further model."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from measure import EXAMPLE, compare, interleave, pytest, python, run, show

GOAL = 2.5
GOAL_EACH = 0.5
# The example has 4 layers of width 96 and 512 tokens; this is the size of models made for tests.
SMALLER = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 128, "max_seq_len": 64}


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=8, help="further models in one process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = copies(folder, options.models + 1, {})
        runs, imports = interleave(
            pytest(models[0]), python("import torch"), folder, options.rounds
        )
        print(f"one tiny model, {options.rounds} pairs of processes")
        show("run, wall", [u.wall for u in runs])
        show("run, CPU", [u.cpu for u in runs])
        show("import torch, wall", [u.wall for u in imports])
        show("import torch, CPU", [u.cpu for u in imports])
        pairs = list(zip(runs, imports, strict=True))
        compare("run / import, wall", [a.wall / b.wall for a, b in pairs], GOAL)
        compare("run / import, CPU", [a.cpu / b.cpu for a, b in pairs], GOAL)
        print(f"\n{options.models} further models in the same process (goal {GOAL_EACH:g} s each)")
        for size, changed in (("the example", {}), ("smaller", SMALLER)):
            further(size, copies(folder, options.models + 1, changed), folder, options.rounds)


def copies(folder: Path, count: int, changed: dict[str, int]) -> list[str]:
    """Arguments that name as many copies of the example, with another size where one is given."""
    models = []
    for number in range(count):
        place = folder / str(number)
        shutil.copytree(EXAMPLE, place, dirs_exist_ok=True)
        config = place / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
        models.append(f"--tb-model={number}/model.py")
    return models


def further(size: str, models: list[str], folder: Path, rounds: int) -> None:
    """Print what each model costs after the first one."""
    count = len(models) - 1
    pairs = [(run(pytest(*models), folder), run(pytest(models[0]), folder)) for _ in range(rounds)]
    show(f"{size}, each, wall", [(a.wall - b.wall) / count for a, b in pairs])
    show(f"{size}, each, CPU", [(a.cpu - b.cpu) / count for a, b in pairs])


if __name__ == "__main__":
    main()
