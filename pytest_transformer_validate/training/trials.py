"""Short trainings of a copy of a model, for checks: what the trainer made of it.

The model itself is left as it is. Every training draws from a seed of its own, runs on the
model's device and in its dtype, and saves nothing.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import Diverged, NotApplicable, error_line
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.subject.inputs import random_ids
from pytest_transformer_validate.subject.subject import Subject
from pytest_transformer_validate.training.config import ConfigWarning, TrainingConfig
from pytest_transformer_validate.training.copied import (
    Enough,
    Watch,
    kept_gradients,
    without_dropout,
)
from pytest_transformer_validate.training.data.files import read_file
from pytest_transformer_validate.training.data.quality import QualityWarning
from pytest_transformer_validate.training.data.tokens import CharacterTokenizer, text_field
from pytest_transformer_validate.training.mixing import find_mixing
from pytest_transformer_validate.training.steps import Stepper
from pytest_transformer_validate.training.trainer import DeviceTrainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_transformer_validate.training.mixing import Mixing

LONGEST = 16  # tokens of a row
STEPS = 200
LASTING = 3  # steps in a row below the goal
Batches = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Training:
    """One training of a copy: the loss of each optimizer step, by which ``stopped`` it ended
    early (empty: it did not), the gradients of the last step before clipping, and the weights
    after it where they were asked for; ``val`` are the validation losses by epoch."""

    losses: tuple[float, ...]
    stopped: str = ""
    gradients: dict[str, torch.Tensor] | None = None
    weights: dict[str, torch.Tensor] | None = None
    val: tuple[float, ...] = ()
    seconds: float = 0.0


class Trials(Passes):
    """Trainings of copies of the probe's model, each run once."""

    @remembered
    def overfit(self, rate: float, goal: float) -> Training:
        """One batch, 200 steps at the learning rate ``rate`` without dropout; ends early where
        the loss is below ``goal`` of the first."""
        batch = self.batch(min(2, self.probe.subject.most_rows), "overfit")

        def enough(losses: list[float]) -> bool:
            return max(losses[-LASTING:]) < goal * losses[0]

        return self._train([batch] * STEPS, "overfit", {"learning_rate": rate}, enough=enough)

    @remembered
    def curve(self, rate: float, steps: int) -> Training:
        """Four batches, again and again for ``steps`` steps without dropout."""
        rows = min(2, self.probe.subject.most_rows)
        batches = [self.batch(rows, "curve", number) for number in range(4)]
        repeated = [batches[step % 4] for step in range(steps)]
        return self._train(repeated, "curve", {"learning_rate": rate})

    @remembered
    def one_step(self, parts: int, repetition: int = 0) -> Training:
        """One optimizer step over four rows, of which another number of targets counts each, in
        ``parts`` micro-batches; with its gradients."""
        whole = self._uneven()
        rows = len(whole[self.target])
        size = rows // parts
        micro = [
            {name: t[at : at + size] for name, t in whole.items()} for at in range(0, rows, size)
        ]
        given = {"gradient_accumulation_steps": len(micro)}
        return self._train(micro, "accumulation", given, gradients=True)

    @remembered
    def mixing(self) -> Mixing:
        """Where the rows of that step see each other."""
        subject = self.probe.subject
        with self.probe.running("accumulation"):
            model = self._copied()
            without_dropout(model)
            copied = Subject(
                model, subject.config, tokenizer=subject.tokenizer, task=self.task.task_type
            )
            return find_mixing(Stepper(copied, self.task), self._uneven())

    @remembered
    def twice(self) -> list[Training]:
        """Five steps with dropout, two times from one seed, and nothing given back in between;
        with the weights."""
        rows = min(2, self.probe.subject.most_rows)
        batches = [self.batch(rows, "seeded", number) for number in range(5)]
        given = {"learning_rate": 1e-3, "deterministic": True}
        return self._train_all(batches, "seeded", given, dropout=True, weights=True, times=2)

    @remembered
    def fine_tuned(self, rate: float) -> Training:
        """On the run's data, as often as the run says, a tenth of it set aside for validation."""
        fitting, subject = self.probe.fitting, self.probe.subject
        given = {
            "learning_rate": rate,
            "epochs": fitting.epochs,
            "batch_size": min(8, subject.most_rows),
            "early_stopping_patience": None,
        }
        return self._train(
            fitting.data,
            "fine_tuning",
            given,
            dropout=True,
            tokenizer=self._tokenizer(),
        )

    @remembered
    def length(self) -> int:
        """How long a row is: short, or as long as the model takes where training refuses less, as
        tables of positions in two factors do."""
        subject = self.probe.subject
        short = min(LONGEST, subject.max_length or LONGEST)
        short = max(short - short % subject.multiple, subject.multiple)
        short = subject.facts.fixed_length or short
        whole = subject.max_length
        if whole is None or whole <= short or subject.vision or not self._refuses(short):
            return short
        return short if self._refuses(whole) else whole

    def _refuses(self, length: int) -> bool:
        rows = min(2, self.probe.subject.most_rows)
        try:
            with self.probe.under("training"), self.probe.running("training", length) as subject:
                subject(subject.batch(rows, length))
        except Exception:  # noqa: BLE001 - what the model raises is told by the training itself
            return True
        return False

    @property
    def task(self) -> Any:
        """The task, with its labels."""
        return self.probe.subject.task

    @property
    def target(self) -> str:
        """Under which name a batch holds its labels."""
        return str(self.task.target_field)

    def batch(self, rows: int, *words: object) -> dict[str, torch.Tensor]:
        """Random inputs with labels that can be learned by heart."""
        subject = self.probe.subject
        width = subject.facts.width
        if width < 2:
            raise NotApplicable("one number is given: there is no choice to learn")
        seed = self.probe.seed_for(*words)
        generator = torch.Generator().manual_seed(seed)
        if not self.task.per_token:
            rows = min(8, subject.most_rows)
        length = self.length()
        inputs = {
            name: tensor
            for name, tensor in subject.batch(rows, length, seed=seed).inputs.items()
            if name != "labels"
        }
        if not self.task.per_token:
            labels = torch.arange(rows) % width
        elif self.task.shifts:
            labels = inputs["input_ids"].clone()
        else:
            vocabulary = subject.target_vocab_size if subject.decodes else subject.vocab_size
            length = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
            labels = random_ids(subject, rows, length, generator, min(vocabulary, width))
        return {**inputs, self.target: labels}

    def _uneven(self) -> dict[str, torch.Tensor]:
        """Up to four rows, of which another number of targets counts each."""
        rows = min(4, self.probe.subject.most_rows)
        whole = self.batch(rows, "accumulation")
        labels = whole[self.target].clone()
        if labels.dim() > 1:
            for row in range(1, rows):
                labels[row, : row * labels.shape[1] // (rows + 1)] = self.task.ignore_index
        return {**whole, self.target: labels}

    def _train(self, data: Any, word: str, given: Mapping[str, Any], **how: Any) -> Training:
        return self._train_all(data, word, given, **how)[0]

    def _train_all(
        self, data: Any, word: str, given: Mapping[str, Any], times: int = 1, **how: Any
    ) -> list[Training]:
        """Train a fresh copy so many times, then give everything back."""
        with self.probe.running(word, grad=True):
            return [self._train_copy(data, word, given, **how) for _ in range(times)]

    def _train_copy(
        self,
        data: Any,
        word: str,
        given: Mapping[str, Any],
        *,
        dropout: bool = False,
        weights: bool = False,
        gradients: bool = False,
        tokenizer: Any = None,
        enough: Callable[[list[float]], bool] = lambda _: False,
    ) -> Training:
        probe = self.probe
        subject = probe.subject
        settings = {
            "checkpoint_dir": None,
            "console": False,
            "epochs": 1,
            "precision": "32-true",
            "random_seed": probe.seed_for(word),
            "run_name": word,
            "weight_decay": 0.0,
        }
        watch = Watch(probe.fitting.budget, enough)
        start = time.perf_counter()
        model = self._copied()
        if not dropout:
            without_dropout(model)
        grads = kept_gradients(model) if gradients else None
        trainer = DeviceTrainer(
            model,
            subject.config,
            TrainingConfig(**{**settings, **given}),
            task_spec=subject.task,
            tokenizer=tokenizer,
            hooks=watch,
        )
        stopped, val = "", []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)
            warnings.simplefilter("ignore", QualityWarning)
            try:
                val = trainer.train(data)["val_loss_history"]
            except Enough as reason:
                stopped = str(reason)
            except Diverged as error:
                stopped = str(error).partition("\n  that step")[0]
        state = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
        seconds = time.perf_counter() - start
        kept = state if weights else None
        return Training(tuple(watch.losses), stopped, grads, kept, tuple(val), seconds)

    def _tokenizer(self) -> Any:
        """The model's own, else one made of the characters of the data, if it reads texts."""
        subject, path = self.probe.subject, self.probe.fitting.data
        if subject.tokenizer is not None or path is None or subject.vision:
            return subject.tokenizer
        rows = read_file(path)
        texts = (row[name] for row in rows if (name := text_field(row)) is not None)
        masks = self.task.task_type == "masked_lm"
        size = min(subject.vocab_size, subject.target_vocab_size if subject.decodes else math.inf)
        return CharacterTokenizer(texts, int(size), pad=subject.pad_id or 0, masks=masks)

    def _copied(self) -> torch.nn.Module:
        """A copy of the model, or the model built once more where it cannot be copied."""
        probe = self.probe
        try:
            model = copy.deepcopy(probe.subject.model)
        except Exception as error:
            built = probe.rebuild and probe.rebuild(probe.seed)
            if built is None or built is probe.subject.model:
                raise NotApplicable(
                    f"the model cannot be copied, and it is not to be changed: {error_line(error)}"
                ) from error
            model = convert(built, probe.subject.dtype, probe.subject.device)
        return model
