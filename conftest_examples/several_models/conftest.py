"""Several models in one run: specs, and models that are built by a function.

They are treated like the ini key tb_model; --tb-model=... on the command line replaces them.
"""

from model import Decoder


def pytest_tb_models(config):
    return [
        "model.py",  # a spec, as after --tb-model=
        (
            "wide",
            lambda: Decoder(d_model=64),
        ),  # an id, and what builds the model when it is needed
        ("deep", lambda: Decoder(n_layers=4)),
    ]
