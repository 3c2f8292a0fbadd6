"""What a model generates, against the logits of the text that it generated.

A token is right where it is the largest logit of everything before it; by induction a text of
which every token is right is what a loop over forwards and argmax gives. So one forward over the
generated text judges all its steps.

Axes: B batch, T positions, V outputs, n new tokens.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, SubjectError, error_line
from pytest_transformer_validate.probe.compare import difference
from pytest_transformer_validate.probe.decoding import padded_left
from pytest_transformer_validate.probe.generate_call import Generate, Unexpected, understand
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.quiet import quietly
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import complete
from pytest_transformer_validate.subject.outputs import read_output

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW = 5
_LONGEST = 512  # tokens of a maximum that a text is made longer than
_MORE = 8
_REFUSALS = (ValueError, TypeError, AssertionError, NotImplementedError, NotApplicable)


@dataclass(frozen=True)
class Plan:
    """How to generate: ``rows`` texts of ``length`` tokens, ``new`` tokens more; ``padded`` on
    the left by a different number each; ``condition`` see ``Probe.under``."""

    rows: int
    length: int
    new: int = NEW
    padded: bool = False
    condition: str = "plain"


@dataclass(frozen=True)
class Generated:
    """What came back.

    ``tokens`` (B, n) are the new ones and ``expected`` (B, n, V) the logits of the text before
    each; ``steps`` the logits (B, V) inside of generate, none where they cannot be seen;
    ``counted`` (B, n) is False behind the end of a text. Where there are no tokens, ``raised``
    says what generate raised, or ``unexpected`` what it gave instead.
    """

    tokens: torch.Tensor
    expected: torch.Tensor
    counted: torch.Tensor
    steps: tuple[torch.Tensor, ...] = ()
    raised: str = ""
    unexpected: str = ""

    @functools.cached_property
    def behind(self) -> torch.Tensor:
        """(B, n): how far the logit of each token is behind the largest one."""
        ids = self.tokens[..., None].clamp(max=self.expected.shape[-1] - 1)
        return self.expected.amax(-1) - self.expected.gather(-1, ids)[..., 0]

    @functools.cached_property
    def distance(self) -> torch.Tensor:
        """(B, n): how far the logits inside are from ``expected``; NaN where none are seen."""
        distance = torch.full(self.tokens.shape, float("nan"))
        for index, step in enumerate(self.steps):
            moved = difference(self.expected[:, index], step)
            distance[:, index] = moved.nan_to_num(float("inf")).amax(-1).float().cpu()
        return distance.masked_fill(~self.counted.cpu(), 0)

    @property
    def moved(self) -> torch.Tensor:
        """(n,): the same, of the worst row."""
        return self.distance.amax(0)

    def inside(self, row: int, step: int) -> torch.Tensor | None:
        """The logits (V,) inside of generate, where they are seen."""
        return self.steps[step][row] if step < len(self.steps) else None


class Generation(Passes):
    """Passes of ``model.generate``."""

    @remembered
    def how(self) -> Generate:
        """How to call it. Raises NotApplicable where there is none, or it asks for more."""
        return understand(self.probe.subject)

    @remembered
    def plans(self) -> list[Plan]:
        """Several lengths, one row and many, padding on the left, all parameters moved."""
        subject = self.probe.subject
        rows, length = subject.sizes
        step = subject.multiple
        new = NEW if step == 1 else step
        room = (subject.max_length or 10**6) - new
        length = min(length, room - room % step)
        if length < step:
            raise NotApplicable(f"the longest text has {subject.max_length} tokens")
        rows = rows if subject.small else min(rows, 2)
        plans = [Plan(rows, length, new)]
        if not subject.small:
            return plans
        short = max(step, (length // 2) - (length // 2) % step)
        plans += [Plan(1, short, new), Plan(rows, length, new, condition="noised")]
        masked = self.how().masked and subject.signature.takes("attention_mask")
        if masked and not subject.decodes and step == 1 and length >= 6:
            plans.append(Plan(rows, length, new, padded=True))
        return plans

    @remembered
    def generated(self, plan: Plan, word: str = "generate") -> Generated:
        """Generate, and one forward over what came; ``word`` decides what is drawn."""
        with self.probe.under(plan.condition):
            return self._generated(plan, word)

    def crash(self) -> Exception | None:
        """What generate raises over one text, the plainest call there is, behind an answer of
        forward: a crash of its own. ``None`` where it works, or refuses: it says so, by a
        ValueError, an assertion or the like, or it lacks something that nobody gave it; and where
        it is inherited beside a forward that others wrote for something else."""
        if not _of_one_hand(self.probe.subject.model):
            return None
        plan = self.plans()[0]
        prompt = self._prompt(replace(plan, rows=1, padded=False))
        with (
            self.probe.running("generate") as subject,
            quietly(),
            _listening(subject.model) as steps,
        ):
            try:
                self.how().call(subject.model, prompt, plan.new)
            except _REFUSALS:
                return None
            except Exception as error:  # noqa: BLE001 - a model raises anything
                return error if steps and "'NoneType'" not in str(error) else None
        return None

    @remembered
    def reads_the_end(self) -> bool | None:
        """Whether what generate computes for a text that is longer than the maximum follows its
        last tokens. ``None`` where that cannot be told: there is no maximum, or a large one, it
        raises, its logits are not seen."""
        subject = self.probe.subject
        longest, step = subject.max_length or 0, subject.multiple
        if subject.decodes or not subject.small or not 0 < longest <= _LONGEST:
            return None
        length = longest + max(step, _MORE - _MORE % step)
        first, other = (
            subject.batch(1, length, seed=self.probe.seed_for("too long", n))["input_ids"]
            for n in range(2)
        )
        with contextlib.suppress(Exception):  # no model has to take a text of that length
            ends = torch.cat([first[:, :longest], other[:, longest:]], dim=1)
            one, two = (self._first_step(ids) for ids in (first, ends))
            if one is not None and two is not None and not torch.equal(first, ends):
                return not torch.equal(one, two)
        return None

    def _first_step(self, ids: torch.Tensor) -> torch.Tensor | None:
        """The logits that generate chooses its first token by."""
        batch = complete(self.probe.subject, Batch({"input_ids": ids}))
        prompt = batch.to(self.probe.subject.device)
        with (
            self.probe.running("generate") as subject,
            quietly(),
            _listening(subject.model) as steps,
        ):
            self.how().call(subject.model, prompt, subject.multiple)
        return steps[0] if steps else None

    @remembered
    def draws(self, plan: Plan) -> bool:
        """Whether other random numbers give another text."""
        first, other = self.generated(plan), self.generated(plan, "generate once more")
        return not torch.equal(first.tokens, other.tokens)

    def supports_padding(self, plan: Plan) -> bool:
        """Whether a plain forward gives the padded text what the text alone gets."""
        prompt = self._prompt(plan)
        padded = self.probe.forward(prompt).logits[:, -1]
        u = torch.finfo(padded.dtype).eps * float(padded.abs().max())
        alone = [self._alone(prompt["input_ids"], prompt, row) for row in range(plan.rows)]
        return bool(difference(padded, torch.stack(alone)).max() <= 64 * u)

    def alone(self, plan: Plan, row: int, step: int) -> torch.Tensor:
        """The logits (V,) before new token ``step`` of ``row``, from that text and no more."""
        with self.probe.under(plan.condition):
            prompt = self._prompt(plan)
            found = self.generated(plan)
            ids = self._text(prompt, found.tokens[:, :step])
            return self._alone(ids, prompt, row)

    def _generated(self, plan: Plan, word: str) -> Generated:
        probe, how = self.probe, self.how()
        prompt = self._prompt(plan)
        nothing = torch.zeros(0)
        none = Generated(nothing, nothing, nothing)
        with probe.running(word) as subject, quietly(), _listening(subject.model) as steps:
            try:
                raw = how.call(subject.model, prompt, plan.new)
            except Exception as error:  # noqa: BLE001 - no task obliges a model to generate
                return replace(none, raised=f"generate raises {error_line(error)}")
        try:
            tokens = how.new_tokens(raw, prompt, plan.new)
        except Unexpected as error:
            return replace(none, unexpected=str(error))
        text = self._text(prompt, tokens[:, :-1])
        logits = probe.forward(self._batch(text, prompt)).logits
        expected = logits[:, -tokens.shape[1] :]
        seen = steps[: tokens.shape[1]]
        if any(step.shape != expected[:, 0].shape for step in seen):
            seen = []
        counted = torch.ones_like(tokens, dtype=torch.bool)
        if how.ends is not None:
            ended = tokens == how.ends
            counted = (ended.cumsum(1) - ended.long()) == 0
        return Generated(tokens, expected, counted, tuple(seen))

    def _prompt(self, plan: Plan) -> Batch:
        probe = self.probe
        batch = probe.batch(plan.rows, plan.length, "prompt")
        if plan.padded:
            return padded_left(probe, batch)
        if probe.subject.decodes:
            start = torch.full((plan.rows, 1), self.how().start, device=probe.subject.device)
            return batch.with_(decoder_input_ids=start)
        return batch

    def _text(self, prompt: Batch, tokens: torch.Tensor) -> torch.Tensor:
        """What the outputs follow: the prompt, or the decoder's first token, and ``tokens``."""
        role = "decoder_input_ids" if self.probe.subject.decodes else "input_ids"
        return torch.cat([prompt[role], tokens], dim=1)

    def _batch(self, text: torch.Tensor, prompt: Batch) -> Batch:
        subject = self.probe.subject
        if subject.decodes:
            both = Batch({"input_ids": prompt["input_ids"], "decoder_input_ids": text})
            return complete(subject, both).to(subject.device)
        batch = complete(subject, Batch({"input_ids": text})).to(subject.device)
        mask = prompt.inputs.get("attention_mask")
        if mask is None:
            return batch
        mask = torch.nn.functional.pad(mask, (0, text.shape[1] - mask.shape[1]), value=1)
        batch = batch.with_(attention_mask=mask)
        if subject.signature.takes("position_ids"):
            batch = batch.with_(position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        return batch

    def _alone(self, ids: torch.Tensor, prompt: Batch, row: int) -> torch.Tensor:
        subject = self.probe.subject
        own = ids[row : row + 1]
        if subject.decodes:
            both = {"input_ids": prompt["input_ids"][row : row + 1], "decoder_input_ids": own}
            return self.probe.forward(complete(subject, Batch(both))).logits[0, -1]
        mask = prompt.inputs.get("attention_mask")
        pads = 0 if mask is None else int((mask[row] == 0).sum())
        alone = complete(subject, Batch({"input_ids": own[:, pads:]})).to(subject.device)
        return self.probe.forward(alone).logits[0, -1]


def _of_one_hand(model: Any) -> bool:
    """Whether generate is not of an installed package that forward is not of."""
    generate, forward = (getattr(model, name).__module__ or "" for name in ("generate", "forward"))
    file = getattr(sys.modules.get(generate), "__file__", None) or ""
    installed = Path(file).is_relative_to(sysconfig.get_path("purelib"))
    return not installed or generate.partition(".")[0] == forward.partition(".")[0]


@contextlib.contextmanager
def _listening(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The logits (B, V) of the last position of every call of the model."""
    steps: list[torch.Tensor] = []

    def listen(_module: Any, _args: Any, output: Any) -> None:
        with contextlib.suppress(SubjectError):
            logits = read_output(output).logits
            steps.append((logits[:, -1] if logits.dim() > 2 else logits).detach().clone())

    handle = model.register_forward_hook(listen)
    try:
        yield steps
    finally:
        handle.remove()
