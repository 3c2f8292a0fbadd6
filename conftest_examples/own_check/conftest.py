"""A check of your own, with a limit that the ini file sets and a budget against a baseline.

It is collected, chosen (-k, -m), declared (tb_expect_fail) and recorded (--tb-json) like the
bundled ones. The pass over the model is shared with them: a probe runs each pass once.
"""

from pytest_transformer_validate import CheckFailed, Measurement, check
from pytest_transformer_validate.checks.registry import Budget
from pytest_transformer_validate.measures.measurement import Limit


@check(tier=1, tasks=["causal_lm"], budgets=[Budget("value")])
def small_tables(probe, *, most=0.5):
    """Tables of embeddings hold no more than a part of the parameters."""
    model = probe.subject.model
    tables = [m for m in model.modules() if type(m).__name__ == "Embedding"]
    share = sum(table.weight.numel() for table in tables) / probe.subject.parameters
    measured = Measurement(value=share, limit=Limit(value=most, rule="small_tables.most"))
    if share > most:
        raise CheckFailed(
            "most parameters should be in the layers, not in tables\n"
            f"{share:.0%} are in {len(tables)} tables (limit {measured.limit})\n"
            "way out: a smaller vocabulary, or a wider model",
            measured,
        )
    return measured
