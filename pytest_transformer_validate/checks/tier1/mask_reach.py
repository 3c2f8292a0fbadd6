"""How padding is told, what no mask reaches, and how the checks of padding say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import Blocked

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.padding import Content
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.masks import Way

TEXT_TASKS = ("causal_lm", "masked_lm", "seq2seq", "classification")
WAY_OUT = 'intended? declare it: "expect_fail" in config.json, or tb_expect_fail'
NOTHING_LEFT = (
    "a query that may see nothing: softmax over -inf only is NaN; use torch.finfo(dtype).min"
)
CONVOLVES = "a convolution reads over the edge of the padding, where no mask reaches"
POOLS = "neighbouring tokens are pooled to one, and padding with them"
PAD_LEFT = "pad on the left: there the outputs are those of the text alone"
REACHED_BY_NONE: dict[str | None, str] = {
    "ids": "ids are read with others (n-grams, ids shifted inside), where no mask reaches",
    "pools": POOLS,
}


def usable_way(probe: Probe, covers: str) -> tuple[Way | None, str]:
    """The mask argument that padding can be told by, or why there is none."""
    passes = probe.padding
    way, refused = passes.accepted(covers)
    if way is None:
        return None, refused or takes_no_mask(probe, covers)
    way, inverted = passes.way(covers)
    assert way is not None
    if inverted and way.fixed:
        return None, f"{way.role} is read the other way round: see mask_effect"
    layout = passes.layout(covers)
    found = passes.content(way, layout, "plain")
    found = found if passes.effect(found) else passes.content(way, f"full_{layout}", "noised")
    if not passes.effect(found):
        return None, f"{way.role} hides nothing: see mask_effect"
    return way, ""


def takes_no_mask(probe: Probe, covers: str) -> str:
    """In words, that no argument tells of padding."""
    if probe.padding.compares(covers):
        return f"forward takes no mask over {covers}: it looks for the padding id"
    return f"forward takes no mask over {covers} and does not look for a padding id"


def excused_by(probe: Probe, found: Content, layout: str, limit: Limit) -> str | None:
    """The structure by which ids under a mask may matter: measured, each by the probe in which
    they do not. ``None`` where there is none."""
    way, passes = found.way, probe.padding
    if layout.endswith("hole") and probe.masks.reads_lengths(way):
        return f"{way.role} is read as the number of real tokens, not as a mask"
    if layout.endswith("hole") and passes.causal:
        front = passes.content(way, "left", found.condition)
        if front.moved <= limit.value or _hides(probe, front, "left", limit):
            return "hidden in the middle of a text, tokens matter; in front of it they do not"
    if _hides(probe, found, layout, limit):
        return CONVOLVES
    if pads_left(probe):
        return PAD_LEFT
    return POOLS if probe.shortens() else None


def _hides(probe: Probe, found: Content, layout: str, limit: Limit) -> bool:
    """Whether the mask has an effect, and ids do not matter where convolutions read zeros in their
    place: zeros alone may cut every way from them."""
    passes = probe.padding
    blanked = passes.content(found.way, layout, found.condition, blank=True)
    return blanked.moved <= limit.value < passes.effect(found)


def pads_left(probe: Probe, plan: str = "mixed") -> bool:
    """Whether padding in front changes nothing: then that is where it belongs. Nobody tells a
    classifier where its tokens stand."""
    told = probe.subject.task.task_type != "classification"
    return not probe.subject.decodes and probe.padded_texts.pads_left(plan, positions=told)


def require_repeatable(probe: Probe, batch: Batch, condition: str, limit: Limit) -> None:
    """Raise Blocked where the same batch twice gives outputs that are further apart."""
    moved = probe.padding.repeats(batch, condition)
    if moved > limit.value:
        raise Blocked(
            f"the same batch twice gives logits that differ by {moved:.2g} in eval mode: the "
            "model draws random numbers or keeps something from one call for the next"
        )


def outputs_of(probe: Probe, covers: str) -> str:
    """In words, the outputs that are compared."""
    if probe.subject.task.task_type == "classification":
        return "the output of a text"
    if probe.subject.decodes and covers != "decoder_input_ids":
        return "outputs of the decoder"
    return "outputs of real tokens"


def in_words(condition: str) -> str:
    """In words, what the probe was under."""
    return " (all parameters moved at random)" if condition == "noised" else ""
