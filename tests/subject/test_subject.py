from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_transformer_validate.errors import SubjectError, TaskError
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.subject.images import image_shape, patch_side
from pytest_transformer_validate.subject.subject import Subject
from tests import models
from tests.models import VOCAB


@pytest.mark.parametrize(
    ("model", "task", "vocabulary", "longest"),
    [
        (models.Decoder, "causal_lm (assumed; declare with --tb-task)", VOCAB, 48),
        (models.Lecture, "causal_lm (assumed; declare with --tb-task)", VOCAB, 48),
        (models.OneHot, "causal_lm (assumed; declare with --tb-task)", VOCAB, 40),
        (models.Indexed, "causal_lm (assumed; declare with --tb-task)", VOCAB, 40),
        (models.TimeMajor, "causal_lm (assumed; declare with --tb-task)", VOCAB, 64),
        (models.Translator, "seq2seq (found: tgt)", VOCAB, 50),
    ],
)
def test_facts_come_from_structure(model, task, vocabulary, longest):
    subject = Subject(model())
    assert (str(subject.task), subject.vocab_size, subject.max_length) == (
        task,
        vocabulary,
        longest,
    )


class _Rewards(models.Decoder):
    """A decoder of a known type, with a head of its own."""

    def forward(self, ids):
        return self.hidden(ids)[:, -1, :1]


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (models.Decoder, "causal_lm (model_type: llama)"),
        (_Rewards, "classification (found: one output a text)"),
    ],
)
def test_a_known_type_may_have_a_head_of_its_own(model, task):
    pytest.importorskip("transformers.models.auto.modeling_auto")
    assert str(Subject(model(), {"model_type": "llama"}).task) == task


@pytest.mark.parametrize(
    "model", [models.Decoder, models.LastLogits, models.StartPosition, models.TimeMajor]
)
def test_every_call_gives_rows_and_positions(model):
    subject = Subject(model().eval())
    assert subject(subject.batch(3, 5)).logits.shape == (3, 5, VOCAB)


def test_a_class_that_is_called_like_an_encoder_is_one_where_nothing_else_speaks():
    kind = type("TinyBert", (models.Decoder,), {})
    assert str(Subject(kind()).task) == "masked_lm (found: class TinyBert)"
    assert Subject(kind(), {"task": "causal_lm"}).task.task_type == "causal_lm"
    assert Subject(type("Bert", (models.Patches,), {})()).vision


class KeepsMask(models.Decoder):
    """Fills in where ``mask_idx`` stands; ``ahead`` says whether outputs know later tokens."""

    def __init__(self, ahead):
        super().__init__()
        self.mask_idx, self.ahead = 3, ahead

    def hidden(self, ids):
        x = super().hidden(ids)
        return x + x.mean(1, keepdim=True) if self.ahead else x


def test_a_mask_that_is_kept_tells_of_an_encoder_that_looks_ahead():
    assert str(Subject(KeepsMask(True)).task) == "masked_lm (found: mask_idx)"
    assert Subject(KeepsMask(False)).task.task_type == "causal_lm"


class PretrainedBert(models.Decoder):
    """Says whether two sentences belong together, and what is masked."""

    def forward(self, input_ids):
        x = self.hidden(input_ids)
        return x[:, 0, :2], self.head(x)


def test_what_fills_in_masked_tokens_stands_behind_another_head():
    subject = Subject(PretrainedBert())
    assert str(subject.task) == "masked_lm (found: class PretrainedBert)"
    assert subject(subject.batch(3, 5)).logits.shape == (3, 5, VOCAB)
    named = Subject(PretrainedBert(), {"task": "classification"})
    assert named(named.batch(3, 5)).logits.shape == (3, 2)
    other = Subject(type("Tagger", (PretrainedBert,), {})())
    assert other.task.task_type == "classification"


def test_a_vision_model_without_a_configuration():
    subject = Subject(models.Patches())
    assert subject.task.task_type == "vision_classification"
    assert subject.batch(3, 1)["pixel_values"].shape == (3, 3, 32, 32)
    assert subject.facts.width == 10


class Unfolded(nn.Module):
    """Patches are cut by hand and read by a linear layer; ``kept`` are its attributes."""

    def __init__(self, channels=3, patch=4, table=None, **kept):
        super().__init__()
        self.read = nn.Linear(channels * patch**2, 8)
        if table:
            self.places = nn.Parameter(torch.zeros(1, table, 8))
        vars(self).update(kept)


@pytest.mark.parametrize(
    ("kept", "config", "shape"),
    [
        ({"channels": 1, "chw": (1, 28, 28)}, {}, (1, 28, 28)),
        ({"channels": 1, "patch_size": 4, "img_size": 24}, {}, (1, 24, 24)),
        ({"table": 65, "patch_size": 4}, {}, (3, 32, 32)),
        ({}, {"num_patches": 64, "patch_size": 4, "num_channels": 3}, (3, 32, 32)),
        ({"table": 50}, {"patch_size": 4, "image_size": 28}, (3, 28, 28)),
    ],
)
def test_the_size_of_images_without_a_convolution(kept, config, shape):
    assert image_shape(Unfolded(**kept), ModelConfig(config)) == shape


class Cut(nn.Module):
    """Patches are cut by nn.Unfold, and nothing that is kept or called speaks of images."""

    def __init__(self):
        super().__init__()
        self.cut, self.read = nn.Unfold(4, stride=4), nn.Linear(48, 8)
        self.places, self.head = nn.Parameter(torch.zeros(1, 65, 8)), nn.Linear(8, 10)

    def forward(self, x):
        read = self.read(self.cut(x).mT)
        return self.head((read + self.places[:, 1:]).mean(1))


def test_an_image_that_is_unfolded():
    subject = Subject(Cut())
    assert subject.task.task_type == "vision_classification"
    assert subject.batch(3, 1)["pixel_values"].shape == (3, 3, 32, 32)
    model = Cut()
    model.cut = nn.Unfold(7, stride=4, padding=2)
    assert patch_side(model, ModelConfig({})) is None, "patches overlap"


def test_an_image_size_that_cannot_be_found_is_asked_for():
    class Flat(nn.Module):
        def forward(self, pixel_values):
            return pixel_values.flatten(1)

    with pytest.raises(TaskError, match='"image_size"'):
        Subject(Flat()).batch(1, 1)


class PatchViT(nn.Module):
    """Patches are cut without a trace of the size, and a table has one row a patch."""

    def __init__(self, channels=1):
        super().__init__()
        self.read, self.places = nn.Linear(channels * 16, 8), nn.Parameter(torch.zeros(49, 8))
        self.bias, self.head = nn.Embedding(3, 8), nn.Linear(8, 10)

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5)
        return self.head((self.read(x.flatten(3).flatten(1, 2)) + self.places).mean(1))


def test_the_size_of_images_is_that_with_which_forward_runs():
    model = PatchViT()
    del model.bias
    subject = Subject(model)
    assert subject.batch(2, 1)["pixel_values"].shape == (2, 1, 28, 28)
    assert (subject.task.task_type, subject.facts.width) == ("vision_classification", 10)
    model.stem = nn.Conv2d(3, 3, 1)  # images of another size than convolutions take
    model.read = nn.Linear(48, 8)
    assert Subject(model).facts.width == 10
    assert not Subject(PatchViT()).vision, "its table may be one of a vocabulary"


def test_a_size_that_is_declared_is_not_another():
    model = PatchViT(3)
    model.stem = nn.Conv2d(3, 3, 1)
    with pytest.raises(RuntimeError, match="must match the size"):
        _ = Subject(model, {"image_size": 32}).facts


def test_a_vocabulary_that_cannot_be_found_is_asked_for():
    class Hashed(nn.Module):
        def forward(self, input_ids):
            return (input_ids * 7 % 5).unsqueeze(-1).float().expand(-1, -1, 3)

    class Bounded(Hashed):
        def forward(self, input_ids):
            if int(input_ids.max()) >= 1000:
                raise IndexError("no such id")
            return super().forward(input_ids)

    with pytest.raises(TaskError, match='declare it: "vocab_size"'):
        _ = Subject(Bounded()).vocab_size
    assert Subject(Hashed()).vocab_size == 256  # it takes any


class Counting(nn.Module):
    """Takes any id, counts its calls, and draws in training."""

    calls = 0

    def forward(self, input_ids):
        self.calls += 1
        drawn = torch.rand(()) if self.training else 0
        return (input_ids * 7 % 5).unsqueeze(-1).float().expand(-1, -1, 3) + drawn


def test_asking_for_a_vocabulary_leaves_model_and_random_state_alone():
    model, before = Counting().train(), torch.get_rng_state()
    assert Subject(model).vocab_size == 256
    assert (model.calls, model.training) == (0, True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "config",
    [{"vocab_size": 90, "max_seq_len": 20}, SimpleNamespace(vocab_size=90, block_size=20)],
)
def test_a_configuration_of_any_kind_wins_over_structure(config):
    subject = Subject(models.Decoder(), config)
    assert (subject.vocab_size, subject.max_length) == (90, 20)
    assert int(subject.batch(8, 20)["input_ids"].max()) < 90


def test_positions_behind_a_padding_row_shorten_the_maximum():
    class Offset(models.Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(48, 32, padding_idx=1)

        def hidden(self, ids):
            return self.tokens(ids) + self.positions(torch.arange(ids.size(1)) + 2)

    assert Subject(Offset(), {"max_position_embeddings": 48}).max_length == 46


@pytest.mark.parametrize(("rows", "longest"), [(20, 20), (47, 50)])
def test_a_length_that_is_declared_may_be_the_sources_alone(rows, longest):
    class Short(models.Translator):
        def __init__(self):
            super().__init__()
            self.places = nn.Embedding(rows, 32)

        def forward(self, src, tgt):
            place = self.places(torch.arange(tgt.shape[1]))
            return super().forward(src, tgt) + 0 * place.sum()

    assert Subject(Short(), {"max_len": 50}).max_length == longest


@pytest.mark.parametrize(("more", "longest"), [({"max_len": 40}, 40), ({}, 12)])
def test_a_number_of_context_vectors_is_the_length_where_nothing_else_is(more, longest):
    assert Subject(models.Decoder(), {"n_ctx": 12, **more}).max_length == longest


def test_positions_from_one_by_mistake_do_not():
    class Mistake(models.Decoder):
        def hidden(self, ids):
            return self.tokens(ids) + self.positions(torch.arange(ids.size(1)) + 1)

    assert Subject(Mistake(), {"max_position_embeddings": 48}).max_length == 48


@pytest.mark.parametrize("end", [2, VOCAB - 1, VOCAB, 50_256])
def test_texts_of_a_classifier_end_with_an_id_that_the_table_has(end):
    class Classifier(models.Decoder):
        def forward(self, input_ids):
            return self.head(self.hidden(input_ids))[:, -1, :3]

    subject = Subject(Classifier(), {"vocab_size": VOCAB, "eos_token_id": end})
    ids = subject.batch(2, 5).main
    assert subject.ends is (end < VOCAB)
    assert bool((ids[:, -1] == end).all()) is (end < VOCAB)


def test_a_model_that_refuses_rows_is_not_looked_at_with_its_longest_text():
    class OneRow(models.Decoder):
        def forward(self, input_ids):
            if input_ids.shape[1] > 100:
                pytest.exit("that takes minutes")
            if len(input_ids) > 1:
                raise ValueError("one text at a time")
            return self.head(self.hidden(input_ids))

    subject = Subject(OneRow(), {"vocab_size": VOCAB, "max_position_embeddings": 131_072})
    assert subject.facts.rank == 3


def test_ids_avoid_what_has_a_meaning():
    config = {"pad_token_id": 0, "eos_token_id": [3], "image_token_id": 5, "vocab_size": VOCAB}
    ids = Subject(models.Decoder(), config).batch(40, 40)["input_ids"]
    assert not {0, 3, 5} & set(ids.flatten().tolist())


@pytest.mark.parametrize(
    ("vocabulary", "ids"), [(2, {0, 1}), (3, {1, 2}), (4, {1, 2, 3}), (5, {3, 4})]
)
def test_two_ids_are_needed_for_two_texts(vocabulary, ids):
    config = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    subject = Subject(models.Decoder(), config)
    assert set(subject.batch(8, 16)["input_ids"].flatten().tolist()) == ids


class _Few(nn.Module):
    """Few ids, and a longer table of positions."""

    def __init__(self, ids: int, *, plain: bool = False) -> None:
        super().__init__()
        table = torch.randn(ids, 8)
        self.table = nn.Parameter(table) if plain else nn.Embedding.from_pretrained(table)
        self.positions = nn.Embedding(40, 8)
        self.head = nn.Linear(8, ids)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        tokens = self.table[ids] if isinstance(self.table, nn.Parameter) else self.table(ids)
        return self.head(tokens + self.positions(torch.arange(ids.shape[1])))


@pytest.mark.parametrize(("ids", "plain"), [(2, False), (2, True), (11, True)])
def test_a_vocabulary_smaller_than_the_other_tables(ids, plain):
    subject = Subject(_Few(ids, plain=plain))
    assert (subject.vocab_size, subject.max_length) == (ids, 40)
    assert set(subject.batch(40, 40)["input_ids"].flatten().tolist()) == set(range(ids))


def test_a_table_with_fewer_rows_than_declared_ids_is_not_spared():
    subject = Subject(_Few(11), {"vocab_size": 40})
    with pytest.raises(IndexError):
        subject.call(subject.batch(5, 7), {})


@pytest.mark.parametrize(("ids", "small"), [(1 << 16, True), (150_000, False)])
def test_passes_over_many_ids_are_short(ids, small):
    model = nn.Sequential(nn.Embedding(ids, 4), nn.Linear(4, ids))
    assert Subject(model, {"vocab_size": ids}).small is small


def test_sizes_are_primes_that_no_weight_has():
    rows, length = Subject(models.Decoder()).sizes
    assert rows != length
    assert not {rows, length} & {n for p in models.Decoder().parameters() for n in p.shape}


def test_the_seed_decides_the_batch():
    subject = Subject(models.Decoder())
    one, same, other = (subject.batch(2, 8, seed=s)["input_ids"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_dtype_and_device_are_taken():
    subject = Subject(models.Decoder(), dtype=torch.bfloat16)
    assert subject(subject.batch(1, 3)).logits.dtype == torch.bfloat16
    assert subject.device.type == "cpu"


def test_a_result_without_logits_is_a_subject_error():
    class Nothing(models.Decoder):
        def forward(self, input_ids):
            return None

    with pytest.raises(SubjectError, match="it returned NoneType"):
        _ = Subject(Nothing()).facts


class Flat(models.Decoder):
    def forward(self, input_ids):
        return super().forward(input_ids).view(-1, VOCAB)


class Channels(models.Decoder):
    def forward(self, input_ids):
        return super().forward(input_ids).transpose(1, 2)


class Heads(models.Decoder):
    """Several tokens ahead are predicted: one head after the other."""

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return torch.stack([logits, logits + 1, logits + 2])


class Discriminator(models.Decoder):
    def forward(self, input_ids):
        return super().forward(input_ids)[..., 0]


class Reward(models.Decoder):
    def forward(self, input_ids):
        return super().forward(input_ids)[:, -1, 0].sigmoid()


LAYOUTS = {
    "flat": (Flat, None, (3, 5, VOCAB)),
    "channels": (Channels, None, (3, 5, VOCAB)),
    "heads": (Heads, None, (3, 5, 3, VOCAB)),
    "scores": (Discriminator, None, (3, 5, 1)),
    "column": (Reward, "classification", (3, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_read_batch_first_whatever_their_layout(layout):
    model, task, shape = LAYOUTS[layout]
    subject = Subject(model().eval(), task=task)
    assert subject.facts.layout == layout
    assert subject(subject.batch(3, 5)).logits.shape == shape


def test_one_number_a_text_is_a_classifiers_where_no_task_is_declared():
    subject = Subject(Reward().eval())
    assert subject.task.task_type == "classification"
    assert subject(subject.batch(3, 5)).logits.shape == (3, 1)
    with pytest.raises(SubjectError, match=r"it returned float32 tensor \(5,\)"):
        _ = Subject(Reward().eval(), task="causal_lm").facts


def test_a_loss_alone_is_called_one():
    class Wrapper(Reward):
        def forward(self, input_ids):
            return super().forward(input_ids).mean()

    with pytest.raises(SubjectError, match=r"tensor \(\), a loss: wrap the part of the model"):
        _ = Subject(Wrapper().eval()).facts


class LossOnly(Reward):
    def forward(self, input_ids):
        return {"loss": super().forward(input_ids)}


def test_a_loss_a_text_is_no_output():
    with pytest.raises(SubjectError, match="must return logits"):
        _ = Subject(LossOnly().eval()).facts


class Registers(torch.nn.Module):
    """Tokens of its own stand in front of the table of positions."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, 4)
        self.register_tokens = torch.nn.Parameter(torch.zeros(1, 4, 8))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 17, 8))


def test_registers_are_no_table_of_patches():
    assert image_shape(Registers(), ModelConfig()) == (3, 16, 16)


class Targets(models.Decoder):
    """Labels are required; nothing but a loss reads them."""

    def forward(self, x, y):
        logits = super().forward(x)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


class Wrapper(models.Decoder):
    """Gives a loss of its own input where nothing asks for logits."""

    def forward(self, x, return_loss=True):
        logits = super().forward(x)
        if not return_loss:
            return logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].mT, x[:, 1:])


def test_logits_are_asked_for_where_a_loss_is_the_default():
    subject = Subject(Wrapper())
    assert subject(subject.batch(3, 5)).logits.shape == (3, 5, VOCAB)


def test_a_required_target_that_no_table_reads_is_labels():
    subject = Subject(Targets())
    assert subject.task.task_type == "causal_lm"
    assert subject.signature.names == {"input_ids": "x", "labels": "y"}
    assert subject(subject.batch(3, 5)).logits.shape == (3, 5, VOCAB)


class Steps(nn.Module):
    """A decoder that reads its target token by token."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(VOCAB, 16), nn.Embedding(30, 16)
        self.encoder, self.decoder = nn.GRU(16, 16, batch_first=True), nn.GRU(16, 16)
        self.out = nn.Linear(16, 30)

    def forward(self, src, trg):
        _, state = self.encoder(self.source(src))
        outputs = []
        for column in trg.unbind(1):
            output, state = self.decoder(self.target(column)[None], state)
            outputs.append(self.out(output[0]))
        return torch.stack(outputs, 1)


def test_a_required_target_that_gives_the_length_is_decoded():
    subject = Subject(Steps())
    assert (str(subject.task), subject.target_vocab_size) == ("seq2seq (found: trg)", 30)
    assert subject(subject.batch(3, 5, source=8)).logits.shape == (3, 5, 30)


def test_a_second_vocabulary():
    class Small(models.Translator):
        def __init__(self) -> None:
            super().__init__()
            self.target = nn.Embedding(20, 32)

    subject = Subject(Small())
    assert (subject.vocab_size, subject.target_vocab_size) == (VOCAB, 20)
    assert int(subject.batch(9, 9)["decoder_input_ids"].max()) < 20


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ({"n_src": 50, "n_vocab": VOCAB}, 50),
        ({"n_vocab": VOCAB}, VOCAB),  # the table is too short
        ({"n_src": 50, "src_vocab_size": 55, "tgt_vocab_size": VOCAB}, 55),
    ],
)
def test_a_declared_vocabulary_that_is_the_targets(config, source):
    model = models.Translator()
    model.source = torch.nn.Embedding(50, 32)
    subject = Subject(model, config)
    assert (subject.vocab_size, subject.target_vocab_size) == (source, VOCAB)


def test_a_model_too_short_for_the_first_look():
    assert Subject(models.Decoder(length=4)).max_length == 4


def test_a_declared_batch_size_is_never_exceeded():
    class Few(models.Decoder):
        def forward(self, input_ids):
            assert len(input_ids) <= 2
            return super().forward(input_ids)

    subject = Subject(Few(), {"max_batch_size": 2})
    assert subject.sizes[0] == 2
