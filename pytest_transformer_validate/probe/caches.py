"""Decoding with a cache, piece by piece, against the same text at once.

Axes: B batch, T positions, V outputs, n tokens of a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.cache_calls import (
    KEPT,
    STATE,
    becomes,
    calls_of_piece,
    first_other,
    sees_the_first_alone,
    takes_last,
)
from pytest_transformer_validate.probe.cache_protocols import handed_over, kept_inside, tensors_of
from pytest_transformer_validate.probe.compare import difference, few_rows, noise
from pytest_transformer_validate.probe.decoding import (
    Plan,
    Protocol,
    feed,
    kept,
    piece_of,
    text_of,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import traced, where_raised
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared_size
from pytest_transformer_validate.subject.inputs import complete

_WINDOW = (
    "sliding_window", "attention_window", "window_size", "local_window", "attn_window",
    "local_attention", "window",
)  # fmt: skip
_LONG = 40


@dataclass(frozen=True)
class Decoded:
    """One text, in pieces and at once.

    ``effect[t]`` is how far position t moved (largest over B and V; NaN where no logits came),
    ``reference`` the logits at once (B, T, V); ``raised`` and ``misshapen`` describe the piece
    ``at`` that gave no logits, ``where`` the module that raised.
    """

    effect: torch.Tensor
    reference: torch.Tensor
    raised: str | None = None
    misshapen: tuple[int, ...] | None = None
    at: int = 0
    where: str | None = None

    @property
    def worst(self) -> float:
        """The largest movement."""
        return float(self.effect.nan_to_num(0.0).max())

    def first_over(self, limit: float) -> int:
        """The first position that moved by more."""
        return int((self.effect > limit).nonzero()[0])


class Caches(Passes):
    """Passes with a cache."""

    @remembered
    def protocol(self) -> Protocol:
        """How the cache travels. Raises NotApplicable where none is seen."""
        probe = self.probe
        signature = probe.subject.signature
        _ = probe.subject.facts
        if not any(map(signature.takes, ("past_key_values", "start", "input_pos", "use_cache"))):
            raise NotApplicable("forward takes no cache and no position to go on from")
        asked = probe.subject.given.of_length
        if asked:
            raise NotApplicable(
                f"forward requires {asked}: what that is behind a cache is unknown"
            )
        if signature.takes("past_key_values"):
            return handed_over(probe)
        return kept_inside(probe)

    @property
    def window(self) -> int | None:
        """The declared number of tokens that a token sees."""
        return declared_size(self.probe.subject.config, _WINDOW)

    @property
    def self_positioned(self) -> bool:
        """Whether the model brings code that gives position ids when it generates."""
        return hasattr(self.probe.subject.model, "prepare_inputs_for_generation")

    def plan(self, case: str) -> list[Plan]:
        """What is decoded in a case; empty where no text is long enough for it."""
        subject = self.probe.subject
        rows, length = subject.sizes
        rows = rows if subject.small else min(rows, 2)
        longest = subject.max_length or _LONG
        if length < 4:
            return [Plan(rows, (1,) * length)] if case == "steps" else []
        if case == "steps":
            if not subject.small:
                return [Plan(rows, (length - 3, 1, 1, 1), positions=False, after="another")]
            return [
                Plan(rows, (length,), positions=False),
                Plan(rows, (1,) * length, positions=False, after="another"),
            ]
        if case == "chunks":
            condition = "noised" if subject.small else ""
            pieces = (3, 2, 1, length - 6) if length > 6 else (2, 1, length - 3)
            return [
                Plan(rows, pieces, condition=condition),
                Plan(rows, (length - 2, 1, 1), after="prefix", condition=condition),
            ]
        if case == "padded":
            behind = subject.decodes  # an encoder: its texts all begin in one column
            return [Plan(rows, (length - 3, 1, 1, 1), padded=not behind, source=behind)]
        plans = []
        window = self.window
        if window is not None and length - 4 < window <= 64 and window + 4 <= longest:
            plans.append(Plan(1, (max(1, window - 2), 1, 1, 1, 1, 1)))
        beyond = (window or 0) + 6 if (window or 0) <= 64 else 0
        long = min(longest, max(_LONG if subject.small else 24, beyond))
        if long > length:
            plans.append(Plan(1, (long - 4, 1, 1, 1, 1)))
        return plans

    @remembered
    def decoded(self, plan: Plan) -> Decoded:
        """The text of ``plan``, decoded and at once."""
        with self.probe.under(plan.condition):
            return self._decoded(plan)

    def _decoded(self, plan: Plan) -> Decoded:
        probe = self.probe
        protocol = self.protocol()
        text = text_of(probe, plan, "decoded")
        logits: list[torch.Tensor] = []
        raised, where = None, None
        with probe.running("decoded") as subject, kept(subject.model):
            try:
                logits.extend(feed(probe, subject, protocol, plan, text))  # as far as it gets
            except Exception as error:  # noqa: BLE001 - the check says what raising means
                raised = error_line(error)
                where = where_raised(subject.model, error)
        reference = probe.forward(text).logits
        return _compared(plan, text, logits, reference, raised, where)

    @remembered
    def noise(self, condition: str) -> float:
        """The model's own rounding under a condition: see ``compare.noise``."""
        probe = self.probe
        if not condition:
            return probe.noise()
        with probe.under(condition):
            return noise(probe)

    @remembered
    def past_padding(self, condition: str) -> tuple[float, torch.Tensor] | None:
        """How far the logits move, and they, when positions are given that begin behind the
        padding id, as RoBERTa's do; ``None`` where there are none or no table goes that far."""
        probe, pad = self.probe, self.probe.subject.pad_id
        if pad is None or not probe.subject.signature.takes("position_ids"):
            return None
        text = probe.batch(*few_rows(probe), "decoded")
        own = torch.arange(text.main.shape[1], device=probe.subject.device) + pad + 1
        given = text.with_(position_ids=own.expand(text.main.shape))
        try:
            with probe.under(condition):
                plain, moved = probe.forward(text).logits, probe.forward(given).logits
        except Exception:  # noqa: BLE001 - no table goes that far
            return None
        return float(difference(plain, moved).max()), plain

    def locate(self, plan: Plan, position: int) -> str | None:
        """The first module whose output for the piece that holds ``position`` is another one than
        at once, although its inputs are the same."""
        probe, protocol = self.probe, self.protocol()
        text = text_of(probe, plan, "decoded")
        start, index = plan.piece_at(position)
        with probe.under(plan.condition):
            calls = calls_of_piece(probe, protocol, plan, text, index)
            with probe.running("forward") as subject, traced(subject.model) as full:
                subject(text)
        rows = text["attention_mask"].bool() if plan.padded else None
        return first_other(full, calls, plan.length, start, plan.pieces[index], rows)

    def plain_after(self) -> tuple[float, torch.Tensor, str | None]:
        """How far the logits of a forward without a cache move once a text was decoded with one,
        these logits, and the first module that differs."""
        probe = self.probe
        rows, length = few_rows(probe)
        plan = Plan(rows, (length - 1, 1))
        text = text_of(probe, plan, "decoded")
        with probe.running("decoded") as subject, kept(subject.model):
            with traced(subject.model) as before:
                reference = subject(text).logits
            for _ in feed(probe, subject, self.protocol(), plan, text):
                pass
            with traced(subject.model) as after:
                moved = difference(reference, subject(text).logits)
        worst = float(moved.nan_to_num(float("inf")).max())
        return worst, reference, first_other(before, after, length, 0, length)

    def first_alone(self, plan: Plan, position: int) -> bool:
        """Whether the piece that holds ``position`` sees the first token and no other one before
        itself."""
        return sees_the_first_alone(self.probe, self.protocol(), plan, position)

    def takes_last(self) -> bool:
        """See ``cache_calls.takes_last``."""
        return takes_last(self.probe, self.protocol())

    def without(self, plan: Plan, position: int) -> float:
        """How far ``position`` moves without any cache when the text ends with its piece, and
        where rows are padded, when they are not."""
        probe = self.probe
        text = text_of(probe, plan, "decoded")
        start, index = plan.piece_at(position)
        end = start + plan.pieces[index]
        with probe.under(plan.condition):
            reference = probe.forward(text).logits[:, position]
            subject = probe.subject
            cut = piece_of(subject, text, 0, end, positions=plan.padded)
            moved = [difference(reference, probe.forward(cut).logits[:, position])]
            if plan.padded:
                row = text.rows - 1
                pads = int((text["attention_mask"][row] == 0).sum())
                alone = Batch({"input_ids": text["input_ids"][row : row + 1, pads:]})
                plain = probe.forward(complete(subject, alone)).logits[:, position - pads]
                moved.append(difference(reference[row : row + 1], plain))
        return max(float(m.nan_to_num(0.0).max()) for m in moved)

    def grows(self) -> bool:
        """Whether a cache that is handed over holds something for every token: what stands in it
        for earlier tokens is kept when a token is added. A recurrent state changes as a whole,
        a window moves."""
        return self._contents() <= {KEPT}

    def recurrent(self) -> bool:
        """Whether it holds a state, and nothing for every token."""
        return STATE in self._contents() and KEPT not in self._contents()

    @remembered
    def _contents(self) -> set[str]:
        """What becomes of what is held when a token is added."""
        protocol = self.protocol()
        if not protocol.handed_over:
            return {KEPT}
        probe = self.probe
        rows, length = probe.subject.sizes
        text = probe.batch(rows, length, "grows")
        with probe.running("grows") as subject, kept(subject.model):
            caches: list[Any] = []
            plan = Plan(rows, (4, 1))
            for _ in feed(probe, subject, protocol, plan, text, caches=caches):
                pass
        old, new = (tensors_of(cache) for cache in caches)
        return {becomes(tensor, new) for tensor in old if tensor.numel() > 1}


def _compared(
    plan: Plan,
    text: Batch,
    logits: list[torch.Tensor],
    reference: torch.Tensor,
    raised: str | None,
    where: str | None,
) -> Decoded:
    effect = torch.full((plan.length,), float("nan"))
    if plan.padded:
        hidden = text["attention_mask"] == 0
    else:
        hidden = torch.zeros(plan.rows, plan.length, dtype=torch.bool, device=reference.device)
    done = 0
    for index, (size, given) in enumerate(zip(plan.pieces, logits, strict=False)):
        expected = reference[:, done : done + size]
        squeezed = given.dim() == 2 and given.shape == expected[:, -1].shape
        piece = given[:, None] if squeezed else given
        last_only = piece.shape == expected[:, -1:].shape
        if piece.shape != expected.shape and not last_only:
            shape = tuple(piece.shape)
            return Decoded(effect, reference, misshapen=shape, at=index)
        first = done + size - piece.shape[1]
        expected = reference[:, first : done + size]
        moved = difference(expected, piece)
        moved = torch.where(expected.isnan(), 0, moved).nan_to_num(float("inf"))
        moved = moved.flatten(2).amax(-1).masked_fill(hidden[:, first : done + size], 0)
        effect[first : done + size] = moved.amax(0).float().cpu()
        done += size
    return Decoded(effect, reference, raised=raised, at=len(logits), where=where)
