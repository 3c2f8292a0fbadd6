"""A whole run over one tiny model, against importing torch; and each further model."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from measure import EXAMPLE, compare, interleave, pytest, python, run, show

GOAL = 2.5
GOAL_EACH = 0.5


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=8, help="further models in one process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = []
        for number in range(options.models + 1):
            shutil.copytree(EXAMPLE, folder / str(number))
            models.append(f"--tb-model={number}/model.py")
        one = pytest(models[0])
        runs, imports = interleave(one, python("import torch"), folder, options.rounds)
        print(f"one tiny model, {options.rounds} pairs of processes")
        show("run, wall", [u.wall for u in runs])
        show("run, CPU", [u.cpu for u in runs])
        show("import torch, wall", [u.wall for u in imports])
        show("import torch, CPU", [u.cpu for u in imports])
        pairs = list(zip(runs, imports, strict=True))
        compare("run / import, wall", [a.wall / b.wall for a, b in pairs], GOAL)
        compare("run / import, CPU", [a.cpu / b.cpu for a, b in pairs], GOAL)
        print(f"\n{options.models} further models in the same process (goal {GOAL_EACH:g} s each)")
        many = [(run(pytest(*models), folder), run(one, folder)) for _ in range(options.rounds)]
        show("each, wall", [(a.wall - b.wall) / options.models for a, b in many])
        show("each, CPU", [(a.cpu - b.cpu) / options.models for a, b in many])


if __name__ == "__main__":
    main()
