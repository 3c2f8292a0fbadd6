"""What forward requires beside ids is found by name and by trying."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.subject import Subject
from tests import models
from tests.models import VOCAB


class Attention(nn.Module):
    """``reading`` says how the mask is read."""

    def __init__(self, reading: str) -> None:
        super().__init__()
        self.reading = reading
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if memory is not None:
            _, k, v = self.qkv(memory).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.mT
        if mask is not None:
            scores = READINGS[self.reading](scores, mask)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


READINGS = {
    "keeps": lambda s, m: s.masked_fill(m == 0, -1e9),
    "hides": lambda s, m: s.masked_fill(m, float("-inf")),
    "not": lambda s, m: s.masked_fill(~m, float("-inf")),
    "added": lambda s, m: s + m,
    "times": lambda s, m: s + m * -1e9,
    "one minus": lambda s, m: s + (1.0 - m) * -1e9,
    "rows": lambda s, m: s.masked_fill(m.unsqueeze(1) == 0, -1e9),
    "keys": lambda s, m: s.masked_fill(m[:, None, None] == 0, float("-inf")),
}


class Language(nn.Module):
    def __init__(self, reading: str = "keeps", out: int = VOCAB) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, 32), nn.Embedding(40, 32)
        self.attention = nn.ModuleList(Attention(reading) for _ in range(2))
        self.head = nn.Linear(32, out)

    def hidden(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for layer in self.attention:
            x = x + layer(x, mask)
        return x

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.hidden(tokens, mask))


class Translator(nn.Module):
    def __init__(self, reading: str) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCAB, 32), nn.Embedding(VOCAB, 32)
        self.encoder, self.decoder = Attention(reading), Attention(reading)
        self.cross = Attention(reading)
        self.head = nn.Linear(32, VOCAB)

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        memory, x = self.source(src), self.target(tgt)
        memory = memory + self.encoder(memory, src_mask)
        x = x + self.decoder(x, tgt_mask)
        return self.head(x + self.cross(x, src_mask, memory))


def later_moves_earlier(subject: Subject) -> bool:
    role = "decoder_input_ids" if subject.decodes else "input_ids"
    one, other = (subject.batch(5, 11, seed=seed) for seed in (1, 2))
    changed = one[role].clone()
    changed[:, 6:] = other[role][:, 6:]
    with torch.no_grad():
        before, after = (subject(b).logits for b in (one, one.with_(**{role: changed})))
    return not torch.equal(before[:, :6], after[:, :6])


@pytest.mark.parametrize(
    ("reading", "form"),
    [
        ("keeps", "mask (T, T), True keeps"),
        ("hides", "mask (T, T), True hides"),
        ("not", "mask (T, T), True keeps"),
        ("added", "mask (T, T), -inf hides, 0 keeps"),
        ("times", "mask (T, T), True hides"),
        ("one minus", "mask (T, T), 1 keeps"),
        ("rows", "mask (B, T, T), True keeps"),
    ],
)
def test_a_required_mask_is_given_as_the_model_reads_it(reading, form):
    subject = Subject(Language(reading).eval())
    assert subject.task.task_type == "causal_lm"
    assert subject.given.causal_mask == subject.given.text == form
    assert not later_moves_earlier(subject)


@pytest.mark.parametrize(
    ("reading", "source", "target"),
    [
        ("keeps", "(B, 1, 1, S), True keeps", "(B, 1, T, T), True keeps"),
        ("rows", "(B, 1, S), True keeps", "(B, T, T), True keeps"),
        ("times", "(B, 1, 1, S), True hides", "(B, 1, T, T), True hides"),
    ],
)
def test_masks_of_source_and_target(reading, source, target):
    subject = Subject(Translator(reading).eval())
    assert subject.task.task_type == "seq2seq"
    assert subject.given.text == f"src_mask {source}; tgt_mask {target}"
    assert not later_moves_earlier(subject)


class OfSource(models.Translator):
    """One required mask: over the source, (B, S)."""

    def translate(self, src, tgt, keep, later):
        source, target = self.place(self.source(src)), self.place(self.target(tgt))
        x = self.transformer(
            source,
            target,
            tgt_mask=later,
            src_key_padding_mask=~keep,
            memory_key_padding_mask=~keep,
        )
        return self.head(x)

    def forward(self, src: Tensor, tgt: Tensor, mask: Tensor) -> Tensor:
        length = tgt.size(1)
        return self.translate(src, tgt, mask, torch.ones(length, length).triu(1).bool())


class KeysAndPairs(OfSource):
    """Keys of the source, (B, S), and pairs of the target, (T, T)."""

    def forward(self, src: Tensor, tgt: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
        return self.translate(src, tgt, x_mask, ~y_mask)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (OfSource, "mask (B, S), True keeps"),
        (KeysAndPairs, "x_mask (B, S), True keeps; y_mask (T, T), True keeps"),
    ],
)
def test_a_mask_over_the_source_alone(model, text):
    subject = Subject(model().eval())
    assert subject.task.task_type == "seq2seq"
    assert subject.given.text == text
    assert not later_moves_earlier(subject)


class Torch(nn.Module):
    """nn.Transformer and all its masks, the time first unless told otherwise."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCAB, 32), nn.Embedding(VOCAB, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=batch_first)
        self.head = nn.Linear(32, VOCAB)

    def forward(self, src, tgt, src_mask, tgt_mask, src_padding_mask, tgt_padding_mask):
        x = self.transformer(
            self.source(src), self.target(tgt), src_mask, tgt_mask, None,
            src_padding_mask, tgt_padding_mask, src_padding_mask,
        )  # fmt: skip
        return self.head(x)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_order_of_axes_shows_where_masks_fit(batch_first):
    subject = Subject(Torch(batch_first).eval())
    assert subject(subject.batch(3, 6)).logits.shape == (3, 6, VOCAB)
    assert subject.time_major is not batch_first
    assert subject.given.causal_mask == "tgt_mask (T, T), True hides"
    assert not later_moves_earlier(subject)


def test_trials_warn_nobody():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Subject(Torch(True).eval()).task.task_type == "seq2seq"


class Own(Language):
    """Makes its causal mask itself; the caller says what is padding."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        causal = torch.ones(tokens.size(1), tokens.size(1)).tril()
        return self.head(self.hidden(tokens, causal * mask[:, None, None]))


def test_a_mask_over_keys_is_no_causal_mask():
    subject = Subject(Own().eval())
    assert subject.facts.rank == 3
    assert (subject.given.text, subject.given.causal_mask) == ("mask (B, T), True keeps", None)


@pytest.mark.parametrize("task", [None, "masked_lm"])
def test_an_encoder_is_not_made_causal_by_its_padding_mask(task):
    subject = Subject(Language("keys").eval(), task=task)
    assert subject.facts.rank == 3
    assert subject.given.text == "mask (B, T), True keeps"
    assert later_moves_earlier(subject)


class Forgets(Language):
    """The mask is optional, and nobody makes one."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(tokens, mask))


class Biased(Language):
    def forward(self, tokens: Tensor, attn_bias: Tensor) -> Tensor:
        return self.head(self.hidden(tokens, attn_bias))


def test_a_required_bias_hides_where_it_is_added():
    subject = Subject(Biased("added").eval())
    assert subject.task.task_type == "causal_lm"
    assert subject.given.causal_mask == "attn_bias (T, T), -inf hides, 0 keeps"
    assert not later_moves_earlier(subject)


class BiasedDecoder(Language):
    def forward(self, tokens: Tensor, attn_bias: Tensor) -> Tensor:
        seen = torch.ones(tokens.size(1), tokens.size(1)).tril()
        return self.head(self.hidden(tokens, attn_bias + torch.log(seen)))


def test_a_bias_is_added_whatever_else_hides():
    subject = Subject(BiasedDecoder("added").eval())
    assert subject.task.task_type == "causal_lm"
    assert subject.given.text == "attn_bias (T, T), -inf hides, 0 keeps"


def test_an_optional_mask_is_never_given():
    subject = Subject(Forgets().eval())
    assert subject.facts.rank == 3
    assert (subject.given.forms, subject.signature.offered) == ({}, ("mask",))
    assert later_moves_earlier(subject)


class Ignores(Language):
    """The second layer does without the mask."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(tokens)
        return self.head(x + self.attention[1](self.attention[0](x, mask), None))


def test_a_mask_that_is_not_honoured_is_given_all_the_same():
    subject = Subject(Ignores().eval())
    assert subject.facts.rank == 3
    assert subject.given.causal_mask == "mask (T, T), True keeps"
    assert later_moves_earlier(subject)


class Classifier(Language):
    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.hidden(text, mask)[:, 0])


def test_a_classifier_is_given_a_mask_that_keeps_everything():
    subject = Subject(Classifier("keeps", 3).eval())
    assert subject.task.task_type == "classification"
    assert (subject.given.causal, subject.given.causal_mask) == (False, None)


def plain(forward):
    return type("Model", (Language,), {"forward": forward})().eval()


def causal(self, ids):
    return self.head(self.hidden(ids, torch.ones(ids.size(1), ids.size(1)).tril()))


def lengths(self, input_ids, lengths):
    assert lengths.tolist() == [input_ids.size(1)] * input_ids.size(0)
    return causal(self, input_ids)


def length(self, input_ids, seq_len):
    return causal(self, input_ids[:, :seq_len])


def positions(self, tokens, pos):
    return causal(self, tokens) + self.head(self.positions(pos))


def segments(self, x, segment_label):
    return causal(self, x) + self.head(self.positions(segment_label))


def flags(self, x, train, deterministic, temperature, step, return_attention):
    assert (train, deterministic, step, return_attention) == (False, True, 0, False)
    return causal(self, x) / temperature


def annotated(self, x, thorough: bool):
    return causal(self, x)


def whose(self, user_ids, log_seqs):
    return causal(self, log_seqs) + self.head(self.positions(user_ids))[:, None]


def about(self, history, target_item):
    return causal(self, history) + self.head(self.tokens(target_item))[:, None]


def scored(self, user_ids, log_seqs, pos_seqs, neg_seqs):
    return causal(self, log_seqs) * (pos_seqs + neg_seqs)[..., None]


FORWARDS = [lengths, length, positions, segments, flags, annotated, whose, about, scored]


@pytest.mark.parametrize("forward", FORWARDS)
def test_other_inputs_are_given_by_name(forward):
    subject = Subject(plain(forward))
    assert subject.task.task_type == "causal_lm"
    for rows, size in ((3, 6), (2, 9)):
        assert subject(subject.batch(rows, size)).logits.shape == (rows, size, VOCAB)


def test_a_decoder_may_ask_for_lengths_and_positions():
    class Model(Translator):
        def forward(self, src_seq, src_lengths, trg_seq, trg_pos):
            assert (src_lengths == src_seq.size(1)).all()
            assert trg_pos.shape == trg_seq.shape
            mask = torch.ones(trg_seq.size(1), trg_seq.size(1)).tril()[None, None]
            return super().forward(src_seq, trg_seq, None, mask)

    subject = Subject(Model("keeps").eval())
    assert subject.task.task_type == "seq2seq"
    assert subject(subject.batch(3, 6)).logits.shape == (3, 6, VOCAB)


class Recurrent(nn.Module):
    """The time first, and a state that only the model can make."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(VOCAB, 32), nn.LSTM(32, 32)
        self.head = nn.Linear(32, VOCAB)

    def init_hidden(self, rows):
        return torch.zeros(1, rows, 32), torch.zeros(1, rows, 32)

    def forward(self, input, hidden):
        states, hidden = self.lstm(self.tokens(input), (hidden[0], hidden[1]))
        return self.head(states), hidden


def test_a_state_to_begin_with():
    subject = Subject(Recurrent().eval())
    assert subject(subject.batch(3, 6)).logits.shape == (3, 6, VOCAB)
    assert subject.time_major


def test_a_classifier_that_reads_columns():
    class Reads(Recurrent):
        def forward(self, text):
            return self.head(self.lstm(self.tokens(text))[1][0][-1])

    subject = Subject(Reads().eval())
    assert subject(subject.batch(3, 6)).logits.shape == (3, VOCAB)
    assert subject.time_major


def test_labels_beside_a_mask():
    class Model(Language):
        def forward(self, x, y, mask):
            logits = super().forward(x, mask)
            return logits, nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    subject = Subject(Model().eval())
    assert subject.task.task_type == "causal_lm"
    assert subject.given.causal_mask == "mask (T, T), True keeps"


def test_a_mask_with_which_nothing_runs_is_asked_for():
    def forward(self, tokens, block_mask):
        return self.head(self.tokens(tokens)) + block_mask.blocks

    with pytest.raises(SubjectError, match=r"requires block_mask(.|\n)*no form(.|\n)*raised"):
        _ = Subject(plain(forward)).facts


class ByColumns(torch.nn.Module):
    """Sees all ids above in its column; ``down`` says which axis that is."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.table, self.head = axis, torch.nn.Embedding(41, 8), torch.nn.Linear(8, 41)

    def forward(self, data):
        qlen, bsz = data.size()
        assert qlen * bsz
        return self.head(self.table(data).cumsum(self.axis))


@pytest.mark.parametrize(("axis", "time_major"), [(0, True), (1, False)])
def test_an_order_that_code_names_is_believed_where_it_is_seen(axis, time_major):
    subject = Subject(ByColumns(axis).eval())
    assert subject.facts.time_major is time_major


class Grows(torch.nn.Module):
    """A table of positions that is made anew for longer texts, and read by flat positions;
    ``axis`` is the axis of the time."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.table, self.head = axis, torch.nn.Embedding(41, 8), torch.nn.Linear(8, 41)
        self.places = torch.randn(4, 8)

    def forward(self, data):
        length = data.size(self.axis)
        if length > len(self.places):
            self.places = torch.randn(length, 8)
        rows = data if self.axis else data.T
        places = torch.arange(length).expand(rows.shape).reshape(-1)
        x = self.table(rows) + self.places.index_select(0, places).view(*rows.shape, 8)
        logits = self.head(x.cumsum(1))
        return logits if self.axis else logits.transpose(0, 1)


@pytest.mark.parametrize(("axis", "time_major"), [(0, True), (1, False)])
def test_a_table_that_grows_does_not_tell_another_order(axis, time_major):
    assert Subject(Grows(axis).eval()).facts.time_major is time_major
