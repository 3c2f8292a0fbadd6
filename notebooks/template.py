# %% [markdown]
# # Validate a transformer
#
# Is it built right (tier 1, about a minute), and does it behave (tier 2, a few minutes)? Runs in
# Colab and in any Jupyter, on a CPU or a GPU. The model is a builder's export in a Gist, a file, a
# folder, or an import path; without one, an example goes through all cells.
#
# `training.ipynb` goes on from here: does it learn?

# %% [markdown]
# ## 1. What is here
#
# Installs the plugin where it is missing, and nothing else: torch and NumPy stay what they are.

# %%
import importlib.util
import subprocess
import sys

PLUGIN = "pytest-transformer-validate[gist]"
if importlib.util.find_spec("pytest_transformer_validate") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PLUGIN], check=True)

# %load_ext pytest_transformer_validate
from pytest_transformer_validate import notebook

notebook.environment()

# %% [markdown]
# ## 2. Which model
#
# The first of: `#gist_id=ID&name=Class` in the address of this page (Colab, where the browser
# tells it), the environment variable `GIST_ID`, and this form: an id, a URL, `gist:ID`,
# `hf:org/name`, or the path of a file or folder.

# %%
gist_id = ""  # @param {type:"string"}

model = notebook.open_model(notebook.choose_model(gist_id))

# %% [markdown]
# ## 3. Its code
#
# Nothing of it has run yet. A fetched model is somebody else's code: read it, then tick
# `accepted`. Exactly this content is accepted, and nothing else.

# %%
model.show()

# %%
accepted = False  # @param {type:"boolean"}
device = "auto"  # @param ["auto", "cpu", "cuda"]

options = f"{model.options(accepted=accepted)} --tb-device={device}"

# %% [markdown]
# ## 4. What it imports
#
# Read off its files. Nothing installs itself: run the line that is printed, if one is.

# %%
missing = model.missing()

# %% [markdown]
# ## 5. It loads
#
# With its task, its number of parameters and the device it runs on.

# %%
# %pytest -k load {options}

# %% [markdown]
# ## 6. Tier 1: is it built right?
#
# What has to hold before any training: failures say where, what people usually did to get there,
# and how to repeat the check.

# %%
# %pytest -q -m tier1 {options}

# %% [markdown]
# ## 7. Tier 2: does it behave?
#
# Attention weights, attribution, perturbation, ways that are meant to be the same. Untick
# `run_tier2` to skip it.

# %%
from IPython import get_ipython

run_tier2 = True  # @param {type:"boolean"}

tier2 = get_ipython().run_line_magic("pytest", f"-q -m tier2 {options}") if run_tier2 else None
tier2

# %% [markdown]
# ## 8. Next
#
# Tests of your own go into a cell that starts with `%%pytest`; a model may also be a variable:
# `%pytest -m tier1 --tb-model=net`.

# %%
model.go_on_in("training.ipynb")
