"""Tests of your own about the model: they run once for every model of the run."""

import torch


def test_logits_have_the_shape_of_the_batch(tb_subject, tb_batch):
    logits = tb_subject(tb_batch).logits  # (B, T, V), whatever forward takes and returns
    assert logits.shape[:2] == tb_batch["input_ids"].shape


def logits(probe, length):
    """A pass: it runs at most once for each length, whoever asks for it."""
    return probe.forward(probe.batch(2, length, "mine")).logits


def test_a_pass_runs_once(tb_probe):
    assert tb_probe.once(logits, 8) is tb_probe.once(logits, 8)


def test_a_change_stays_in_its_test(tb_model):
    with torch.no_grad():
        tb_model.head.weight.zero_()
    assert not tb_model.head.weight.any()


def test_the_next_test_has_the_model_as_loaded(tb_model, tb_config, tb_tokenizer, tb_device):
    assert tb_model.head.weight.any()
    assert next(tb_model.parameters()).device.type == tb_device.type
    assert tb_tokenizer is None
