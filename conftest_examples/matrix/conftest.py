"""A grid of models: every combination is a model of the run, with an id that can be typed.

pytest                              # all of them
pytest 'heads4-pre'                 # one, as a CI matrix asks for it
pytest -k 'causality and heads2'    # one check of some
"""

import functools
import itertools

from model import Decoder

HEADS = (2, 4)
NORMS = {"pre": True, "post": False}


def pytest_tb_models(config):
    for heads, norm in itertools.product(HEADS, NORMS):
        build = functools.partial(Decoder, n_heads=heads, norm_first=NORMS[norm])
        yield f"heads{heads}-{norm}", build
