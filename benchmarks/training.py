"""The trainer beside a bare loop, Hugging Face's Trainer and PyTorch Lightning; and its data.

All loops of a round train the same model on the same batches with the same optimizer, one after
the other in an order that changes, and are timed by their CPU time, which others on the machine
disturb least. What is not installed is left out and said.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from measure import compare, python, run
from torch import nn

from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training import (
    LanguageModelingDataCollator,
    Trainer,
    TrainingConfig,
    filter_short_sequences,
)

if TYPE_CHECKING:
    from collections.abc import Callable

GOAL_SPEED, GOAL_OVERHEAD, GOAL_COLLATION, GOAL_FILTER, GOAL_MEMORY = 0.98, 0.5, 1.5, 100, 1.02
GOAL_IMPORT = 1.15
VOCABULARY = 1_000
CLIP = 0.5  # below the norm of these gradients, so that every loop does clip
RATE, LOG_EVERY = 1e-4, 64


class Model(nn.Module):
    """A plain encoder with a causal mask; with labels it gives the loss too, as others ask."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        block = nn.TransformerEncoderLayer(
            width, max(2, width // 64), 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        length = input_ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=input_ids.device)
        logits = self.head(self.blocks(self.embed(input_ids), mask=mask, is_causal=True))
        if labels is None:
            return {"logits": logits}
        return {"loss": loss_of(logits, labels), "logits": logits}


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@dataclass(frozen=True)
class Setting:
    """A model and its batches."""

    width: int
    layers: int
    rows: int
    length: int
    steps: int

    def model(self) -> Model:
        torch.manual_seed(0)
        return Model(self.width, self.layers)

    def batches(self) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.rows, self.length)
        made = [torch.randint(VOCABULARY, shape, generator=generator) for _ in range(self.steps)]
        return [{"input_ids": ids, "labels": ids} for ids in made]

    def loader(self) -> torch.utils.data.DataLoader[dict[str, torch.Tensor]]:
        return torch.utils.data.DataLoader(
            self.batches(), 1, shuffle=True, collate_fn=only, generator=torch.Generator()
        )

    def rate(self, step: int) -> float:
        return 1 - step / self.steps


def only(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The batch that is the one example."""
    return dict(examples[0])


def bare(setting: Setting) -> None:
    """A loop as one writes it."""
    model = setting.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, setting.rate)
    for batch in setting.loader():
        loss = loss_of(model(batch["input_ids"])["logits"], batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()


def ours(setting: Setting) -> None:
    """This package's trainer."""
    config = TrainingConfig(
        epochs=1,
        precision="32-true",
        learning_rate=RATE,
        gradient_clip_norm=CLIP,
        checkpoint_dir=None,
        console=False,
    )
    Trainer(setting.model(), None, config, TaskSpec("causal_lm")).train(setting.loader())


def hugging_face(setting: Setting) -> None:
    """transformers.Trainer."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=setting.steps,
            per_device_train_batch_size=1,
            learning_rate=RATE,
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            setting.model(),
            arguments,
            data_collator=only,
            train_dataset=setting.batches(),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def lightning(setting: Setting) -> None:
    """pytorch_lightning.Trainer."""
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = setting.model()

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            loss = loss_of(self.model(batch["input_ids"])["logits"], batch["labels"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, fused=True)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, setting.rate)
            each = {"scheduler": schedule, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": each}

    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=CLIP,
        log_every_n_steps=LOG_EVERY,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), setting.loader())


def loops() -> dict[str, Callable[[Setting], None]]:
    """Those that can run here."""
    found = {"bare": bare, "ours": ours}
    for name, loop, packages in (
        ("hugging face", hugging_face, ("transformers", "accelerate")),
        ("lightning", lightning, ("pytorch_lightning",)),
    ):
        if all(importlib.util.find_spec(package) for package in packages):
            found[name] = loop
        else:
            print(f"  left out: {name} (needs {', '.join(packages)})")
    return found


def interleaved(setting: Setting, rounds: int) -> dict[str, list[float]]:
    """CPU seconds a step of every loop, by round. What setting up costs is taken off: the time of
    a run with no more than two steps."""
    chosen, order = loops(), random.Random(0)
    short = Setting(setting.width, setting.layers, setting.rows, setting.length, 2)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(rounds + 1):
        if number == 1:
            steady()
        names = list(chosen)
        order.shuffle(names)
        for name in names:
            set_up, whole = (_timed(chosen[name], each) for each in (short, setting))
            if number:  # the first round imports and warms up
                seconds[name].append((whole - set_up) / (setting.steps - 2))
    return seconds


def steady() -> None:
    """Leave out what chance decides, for all loops alike: whether memory that a step frees goes
    back to the system and is fetched again in the next one (0.1 ms a step), and how many objects
    of others a collection of garbage, which Hugging Face's set-up asks for, has to look at."""
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3
        for setting in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(setting, 2**25)


def _timed(loop: Callable[[Setting], None], setting: Setting) -> float:
    start = time.process_time()
    loop(setting)
    return time.process_time() - start


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the 95 % bootstrap interval of it."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2_000))
    return statistics.median(values), medians[50], medians[-51]


def show(name: str, values: list[float], goal: float, *, at_least: bool) -> None:
    """A median with its interval against a goal: met where the interval reaches it."""
    median, low, high = interval(values)
    met = high >= goal if at_least else low <= goal
    words = "at least" if at_least else "at most"
    print(
        f"  {name:<44}{median:9.3f}    ({low:.3f} to {high:.3f})  {words} {goal:g}: "
        f"{'met' if met else 'missed'}"
    )


def speed(rounds: int) -> None:
    """Tokens a second on a model that computes."""
    print(f"d 256, 4 layers, 8 x 128 tokens: {rounds} rounds, CPU time")
    found = interleaved(Setting(256, 4, 8, 128, 6), rounds)
    for name, values in found.items():
        print(f"  {name:<44}{1e3 * statistics.median(values):9.2f} ms a step")
    for name in [name for name in found if name != "bare"]:
        ratios = [b / o for b, o in zip(found["bare"], found[name], strict=True)]
        if name == "ours":
            show("tokens/s, ours / bare loop", ratios, GOAL_SPEED, at_least=True)
        else:
            print(f"  tokens/s, {name} / bare loop: {statistics.median(ratios):.3f}")


def overhead(rounds: int) -> None:
    """The cost of the loop itself, on a model that costs nothing."""
    print(f"d 32, 1 layer, 4 x 16 tokens: {rounds} rounds, CPU time")
    found = interleaved(Setting(32, 1, 4, 16, 150), rounds)
    for name, values in found.items():
        print(f"  {name:<44}{1e3 * statistics.median(values):9.3f} ms a step")
    extra = {
        name: [v - b for v, b in zip(values, found["bare"], strict=True)]
        for name, values in found.items()
    }
    for name in [name for name in found if name != "bare"]:
        median, low, high = interval([1e3 * v for v in extra[name]])
        print(
            f"  {name + ': more than the bare loop':<44}{median:9.3f} ms ({low:.3f} to {high:.3f})"
        )
    if "hugging face" in extra:
        theirs = statistics.median(extra["hugging face"])
        parts = [v / theirs for v in extra["ours"]]
        show("overhead, ours / Hugging Face's", parts, GOAL_OVERHEAD, at_least=False)


def collation(rounds: int) -> None:
    """Batches of unequal lengths."""
    import transformers
    from tokenizers import Tokenizer, models

    words = {str(number): number for number in range(VOCABULARY)} | {"<pad>": VOCABULARY}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "0")), pad_token="<pad>"
    )
    draw = random.Random(0)
    examples = [
        {"input_ids": [draw.randrange(VOCABULARY) for _ in range(draw.randint(16, 256))]}
        for _ in range(32)
    ]
    theirs = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    own = LanguageModelingDataCollator(tokenizer)
    ratios = []
    for _ in range(rounds):
        times = []
        for collate in (theirs, own):
            start = time.process_time()
            for _ in range(20):
                collate([dict(example) for example in examples])
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    print(f"32 examples of 16 to 256 tokens a batch: {rounds} rounds")
    show("collation, ours / transformers'", ratios, GOAL_COLLATION, at_least=True)


def filtering(count: int, rounds: int) -> None:
    """Short sequences left out of a large dataset, and a Python predicate called for each row."""
    import datasets
    import numpy
    import pyarrow

    datasets.disable_progress_bars()
    draw = numpy.random.default_rng(0)
    offsets = numpy.concatenate([[0], numpy.cumsum(draw.integers(0, 128, count))]).astype("int32")
    tokens = draw.integers(0, 50_257, offsets[-1], "int32")
    ids = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(tokens))
    data = datasets.Dataset(pyarrow.table({"input_ids": ids}))
    own = []
    for _ in range(rounds):
        start = time.process_time()
        kept = filter_short_sequences(data, 2, verbose=False)
        own.append(time.process_time() - start)
    start = time.process_time()
    other = data.filter(lambda row: len(row["input_ids"]) >= 2)
    theirs = time.process_time() - start
    assert len(kept) == len(other)
    print(f"{count:,} sequences: ours {statistics.median(own):.4f} s, theirs {theirs:.1f} s")
    show(
        "filtering, ours / datasets.filter", [theirs / t for t in own], GOAL_FILTER, at_least=True
    )


def memory(rounds: int) -> None:
    """Peak memory of a process that trains, beside the bare loop; and what importing costs."""
    with tempfile.TemporaryDirectory() as name:
        from pathlib import Path

        folder = Path(name)
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        code += "import warnings; warnings.simplefilter('ignore')\n"
        code += "import training as t\nimport pandas\nt.{}(t.Setting(256, 4, 8, 128, 4))"
        pairs = [
            (run(python(code.format("ours")), folder), run(python(code.format("bare")), folder))
            for _ in range(rounds)
        ]
        print(f"peak memory, {rounds} pairs of processes")
        compare("ours / bare loop", [a.peak / b.peak for a, b in pairs], GOAL_MEMORY)
        names = "from pytest_transformer_validate.training import Trainer, TrainingConfig"
        imports = [
            (run(python(names), folder), run(python("import torch"), folder))
            for _ in range(rounds + 1)
        ][1:]
        print(f"import, {rounds} pairs of processes, CPU time")
        compare("ours / import torch", [a.cpu / b.cpu for a, b in imports], GOAL_IMPORT)


def main() -> None:
    """Print all, or the parts that are named."""
    parts = {
        "speed": lambda o: speed(o.rounds),
        "overhead": lambda o: overhead(o.rounds),
        "collation": lambda o: collation(o.rounds),
        "filtering": lambda o: filtering(o.sequences, o.rounds),
        "memory": lambda o: memory(min(o.rounds, 5)),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name in options.part or parts:
        parts[name](options)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
