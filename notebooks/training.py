# %% [markdown]
# # Train a transformer
#
# Does it learn (tier 3, minutes)? Then train it, with the trainer that the checks use. Runs in
# Colab and in any Jupyter, on a CPU or a GPU. Every cell can be run again. Validate the model
# first: `template.ipynb`.

# %% [markdown]
# ## 1. What is here
#
# Installs the plugin where it is missing.

# %%
import importlib.util
import subprocess
import sys

PLUGIN = "pytest-transformer-validate"
if importlib.util.find_spec("pytest_transformer_validate") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", f"{PLUGIN}[gist]"], check=True
    )

# %load_ext pytest_transformer_validate
from pytest_transformer_validate import notebook

notebook.environment()

# %% [markdown]
# ## 2. Which model
#
# As in `template.ipynb`: the address of this page, the environment variable `GIST_ID`, this form.

# %%
gist_id = ""  # @param {type:"string"}

model = notebook.open_model(notebook.choose_model(gist_id))
model.show()

# %% [markdown]
# ## 3. Accept its code, install what is missing
#
# Tick `accepted` once you have read the code of a fetched model. Tick `install` to install what
# training uses (tables, data sets) and what the model imports; without it, what needs a package
# that is missing says so.

# %%
accepted = False  # @param {type:"boolean"}
install = False  # @param {type:"boolean"}
device = "auto"  # @param ["auto", "cpu", "cuda"]

wanted = [f"{PLUGIN}[train]", *model.missing()]
if install:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)

options = f"{model.options(accepted=accepted)} --tb-device={device}"

# %% [markdown]
# ## 4. Tier 3: does it learn?
#
# On copies of the model: one batch is learned by heart, the loss falls, accumulated gradients add
# up, one seed gives one training. With `data`, a file of texts (csv, tsv, json, jsonl, text,
# parquet), it is also trained on that.

# %%
data = ""  # @param {type:"string"}
seconds = 120  # @param {type:"integer"}

if data:
    options = f"{options} '--tb-data={data}'"
# %pytest -q --tier3 --tb-time-budget={seconds} {options}

# %% [markdown]
# ## 5. Train
#
# In this kernel. Without `data` the model learns its own source by heart, character by character,
# which shows that the loop works and is good for nothing else.

# %%
epochs = 5  # @param {type:"integer"}
learning_rate = 1e-3  # @param {type:"number"}
batch_size = 8  # @param {type:"integer"}

from pathlib import Path

import torch

from pytest_transformer_validate import Subject
from pytest_transformer_validate.training import (
    CharacterTokenizer,
    Trainer,
    TrainingConfig,
    TrainingHooks,
)


class Losses(TrainingHooks):
    """The loss of every step."""

    def __init__(self):
        self.steps = []

    def on_batch_end(self, batch_idx, loss):
        self.steps.append(loss)


loaded = model.load(accepted=accepted)
losses = Losses()
files = [Path(data)] if data else model.files
texts = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
config = TrainingConfig(
    epochs=epochs,
    learning_rate=learning_rate,
    batch_size=batch_size,
    precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
    checkpoint_dir="checkpoints",
)
with loaded.scope:
    size = Subject(loaded.model, loaded.config).vocab_size
    tokenizer = loaded.tokenizer or CharacterTokenizer(texts, size)
    trainer = Trainer(loaded.model, loaded.config, config, tokenizer=tokenizer, hooks=losses)
    result = trainer.train(data or [text for text in texts if text.strip()])

# %% [markdown]
# ## 6. How it went

# %%
epochs_of = {"train": result["loss_history"], "validation": result["val_loss_history"]}
notebook.show_curves(epochs_of, "loss by epoch")
notebook.show_curves({"loss": losses.steps}, "loss by step")
print(f"best epoch {result['best_epoch']}, weights in {result['checkpoint_path']}")
result["metrics_summary"]

# %% [markdown]
# ## 7. Is it still built right?
#
# The trained model is a variable of this notebook, and can be validated as one.

# %%
trained = loaded.model
# %pytest -q -m tier1 --tb-model=trained
