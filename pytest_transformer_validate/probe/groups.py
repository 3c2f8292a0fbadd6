"""The groups of passes that a Probe has, each made when it is first asked for."""

from __future__ import annotations

import functools

from pytest_transformer_validate.probe.adversary import Adversary
from pytest_transformer_validate.probe.answers import Answers
from pytest_transformer_validate.probe.attention import Attention
from pytest_transformer_validate.probe.attribution import Attributions
from pytest_transformer_validate.probe.backends import Backends
from pytest_transformer_validate.probe.bounds import Bounds
from pytest_transformer_validate.probe.by_hand import ByHand
from pytest_transformer_validate.probe.caches import Caches
from pytest_transformer_validate.probe.checkpointing import Checkpointing
from pytest_transformer_validate.probe.checkpoints import Checkpoints
from pytest_transformer_validate.probe.comparison import Comparison
from pytest_transformer_validate.probe.cuts import Cuts
from pytest_transformer_validate.probe.draws import Draws
from pytest_transformer_validate.probe.dropouts import Dropouts
from pytest_transformer_validate.probe.experts import Experts
from pytest_transformer_validate.probe.exported import Exported
from pytest_transformer_validate.probe.generation import Generation
from pytest_transformer_validate.probe.growth import Growths
from pytest_transformer_validate.probe.layers import Layers
from pytest_transformer_validate.probe.leaks import Leaks
from pytest_transformer_validate.probe.left_behind import LeftBehind
from pytest_transformer_validate.probe.losses import Losses
from pytest_transformer_validate.probe.masks import Masks
from pytest_transformer_validate.probe.mixing import Mixing
from pytest_transformer_validate.probe.moved_weights import MovedWeights
from pytest_transformer_validate.probe.norms import Norms
from pytest_transformer_validate.probe.order import Order
from pytest_transformer_validate.probe.padded_texts import PaddedTexts
from pytest_transformer_validate.probe.padding import Padding
from pytest_transformer_validate.probe.patches import Patches
from pytest_transformer_validate.probe.perturbation import Perturbation
from pytest_transformer_validate.probe.precision import Precision
from pytest_transformer_validate.probe.quantised import Quantisation
from pytest_transformer_validate.probe.resized import Resizing
from pytest_transformer_validate.probe.resources import Resources
from pytest_transformer_validate.probe.siblings import Siblings
from pytest_transformer_validate.probe.states import States
from pytest_transformer_validate.probe.streams import Streams
from pytest_transformer_validate.probe.structure import Structure
from pytest_transformer_validate.probe.tables import Tables
from pytest_transformer_validate.probe.texts import Texts
from pytest_transformer_validate.probe.tying import Tying
from pytest_transformer_validate.probe.vector_noise import VectorNoise
from pytest_transformer_validate.probe.weights import Weights
from pytest_transformer_validate.probe.weights_of_attention import AttentionWeights


class Groups:
    """One object of each group; each is given the Probe that it belongs to."""

    mixing = functools.cached_property(Mixing)
    order = functools.cached_property(Order)
    adversary = functools.cached_property(Adversary)
    answers = functools.cached_property(Answers)
    attention = functools.cached_property(Attention)
    attention_weights = functools.cached_property(AttentionWeights)
    attributions = functools.cached_property(Attributions)
    backends = functools.cached_property(Backends)
    by_hand = functools.cached_property(ByHand)
    caches = functools.cached_property(Caches)
    experts = functools.cached_property(Experts)
    exported = functools.cached_property(Exported)
    generation = functools.cached_property(Generation)
    growths = functools.cached_property(Growths)
    layers = functools.cached_property(Layers)
    losses = functools.cached_property(Losses)
    quantisation = functools.cached_property(Quantisation)
    resizing = functools.cached_property(Resizing)
    resources = functools.cached_property(Resources)
    tables = functools.cached_property(Tables)
    texts = functools.cached_property(Texts)
    padding = functools.cached_property(Padding)
    streams = functools.cached_property(Streams)
    norms = functools.cached_property(Norms)
    masks = functools.cached_property(Masks)
    padded_texts = functools.cached_property(PaddedTexts)
    leaks = functools.cached_property(Leaks)
    perturbation = functools.cached_property(Perturbation)
    vector_noise = functools.cached_property(VectorNoise)
    checkpointing = functools.cached_property(Checkpointing)
    comparison = functools.cached_property(Comparison)
    cuts = functools.cached_property(Cuts)
    draws = functools.cached_property(Draws)
    patches = functools.cached_property(Patches)
    dropouts = functools.cached_property(Dropouts)
    states = functools.cached_property(States)
    drawn = functools.cached_property(Weights)
    moved_weights = functools.cached_property(MovedWeights)
    siblings = functools.cached_property(Siblings)
    structure = functools.cached_property(Structure)
    tying = functools.cached_property(Tying)
    checkpoints = functools.cached_property(Checkpoints)
    left_behind = functools.cached_property(LeftBehind)
    precision = functools.cached_property(Precision)
    bounds = functools.cached_property(Bounds)
