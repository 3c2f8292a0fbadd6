"""``python -m pytest_transformer_validate``: what is no part of a pytest run."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 1 where the evidence has a miss or a false alarm."""
    parser = argparse.ArgumentParser(prog="python -m pytest_transformer_validate")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "evidence", help="run the checks over healthy models and mutants and print the tables"
    )
    parser.parse_args(arguments)
    return evidence()


def evidence() -> int:
    """Print the zoo table and the mutant table."""
    from pytest_transformer_validate.evidence import table
    from pytest_transformer_validate.evidence.mutants import MUTANTS
    from pytest_transformer_validate.evidence.zoo import ZOO

    healthy = [table.healthy_row(name) for name in ZOO]
    mutants = [table.mutant_row(name) for name in MUTANTS]
    print("\n".join([*table.zoo_table(healthy), "", *table.mutant_table(mutants)]))
    return int(any(row.alarms for row in healthy) or any(row.missed for row in mutants))


if __name__ == "__main__":
    sys.exit(main())
