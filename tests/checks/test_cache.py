"""What kv_cache says and decides, and how a cache may travel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.tier1.cache import CASES, kv_cache
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.evidence.zoo.cached_seq2seq import CachedSeq2Seq
from pytest_transformer_validate.probe import cache_protocols
from tests import models
from tests.models import probe_of


def judged(model: nn.Module, config=None, task=None):
    """The measurement of every case that applies."""
    probe, found = probe_of(model, config, task), {}
    for case in CASES:
        try:
            found[case] = kv_cache(probe, case)
        except NotApplicable as skip:
            found[case] = skip.reason
    return found


class Cached(nn.Module):
    """One layer of attention over a cache (k, v), learned positions; subclasses hand it over."""

    def __init__(self, length: int = 48) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.VOCAB, 32)
        self.positions = nn.Embedding(length, 32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.head = nn.Linear(32, models.VOCAB)

    def attend(self, x, past):
        b, t, _ = x.shape
        q, k, v = (s.view(b, t, 4, 8).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mask = torch.ones(t, k.shape[2], dtype=torch.bool).tril(k.shape[2] - t)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(b, t, 32)
        return x + self.out(y), (k, v)

    def run(self, ids, past, start=None):
        start = start if start is not None else 0 if past is None else past[0].shape[2]
        x = self.tokens(ids) + self.positions(torch.arange(start, start + ids.shape[1]))
        x, past = self.attend(x, past)
        return self.head(x), past


class InATuple(Cached):
    def forward(self, idx, layer_past=None):
        logits, past = self.run(idx, layer_past)
        return logits, None, past


class UnderAnyName(Cached):
    def forward(self, idx, kv_cache=None, return_kv_cache=False):
        logits, past = self.run(idx, kv_cache)
        return {"out": logits, "memories": past} if return_kv_cache else {"out": logits}


class Holder:
    def __init__(self) -> None:
        self.pair = None


class InAnObject(Cached):
    """The object is changed in place, as caches of transformers are."""

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        holder = past_key_values if past_key_values is not None else Holder()
        logits, pair = self.run(input_ids, holder.pair)
        if use_cache:
            holder.pair = pair
        return {"logits": logits, "past_key_values": holder if use_cache else None}


class Room:
    """Keys and values in blocks of ``step`` places, of which the first ``used`` are taken."""

    step = 16

    def __init__(self):
        self.pair, self.used = None, 0

    def past(self):
        return self.pair and tuple(t[:, :, : self.used] for t in self.pair)

    def keep(self, pair):
        self.used = pair[0].shape[2]
        empty = -self.used % self.step
        self.pair = tuple(F.pad(t, (0, 0, 0, empty)) for t in pair)


class InOnesOfItsOwn(Cached):
    """One object a layer, in a list, which a caller could not make; ``slips`` is a mistake."""

    slips = 0

    def forward(self, ids, cache=None, use_cache=False):
        rooms = cache or ([Room()] if use_cache else None)
        past = rooms and rooms[0].past()
        start = past[0].shape[2] - self.slips if past else 0
        logits, pair = self.run(ids, past, start)
        if rooms is None:
            return logits
        rooms[0].keep(pair)
        return logits, rooms


class InBuffers(Cached):
    """Kept inside, emptied by a method, no position given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache_k", None, persistent=False)
        self.register_buffer("cache_v", None, persistent=False)

    def reset_kv_cache(self):
        self.cache_k = self.cache_v = None

    def forward(self, in_idx, use_cache=False):
        past = (self.cache_k, self.cache_v) if use_cache and self.cache_k is not None else None
        logits, (k, v) = self.run(in_idx, past)
        if use_cache:
            self.cache_k, self.cache_v = k, v
        return logits


class LastOnly(Cached):
    def forward(self, idx, past=None, targets=None):
        logits, past = self.run(idx, past)
        if targets is not None:
            return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten()), past
        return logits[:, [-1]], None, past


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.VOCAB, 32)
        self.rnn = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, models.VOCAB)

    def forward(self, ids, hidden):
        x, hidden = self.rnn(self.tokens(ids), hidden)
        return self.head(x), hidden


HEALTHY = [InATuple, UnderAnyName, InAnObject, InBuffers, LastOnly, Recurrent]


@pytest.mark.parametrize("kind", HEALTHY)
def test_every_way_of_handing_a_cache_over_is_judged(kind):
    model = kind()
    before = {name: set(vars(m)) | set(m._buffers) for name, m in model.named_modules()}
    found = judged(model)
    for case in ("steps", "chunks", "long"):
        assert found[case].value <= found[case].limit.value
        assert not found[case].notes
    assert found["padded"] == "forward takes no attention_mask for what it decodes"
    assert {n: set(vars(m)) | set(m._buffers) for n, m in model.named_modules()} == before
    if kind is InBuffers:
        assert model.cache_k is None


class TakesStates(CachedSeq2Seq):
    """Takes back what the encoder gave as the tensor that it is."""

    def forward(
        self, input_ids, attention_mask=None, decoder_input_ids=None, encoder_outputs=None,
        past_key_values=None,
    ):  # fmt: skip
        given = None if encoder_outputs is None else (encoder_outputs + 0.0,)
        return super().forward(
            input_ids, attention_mask, decoder_input_ids, given, past_key_values, use_cache=True
        )


class TakesNothingBack(CachedSeq2Seq):
    def forward(
        self, input_ids, attention_mask=None, decoder_input_ids=None, encoder_outputs=None,
        past_key_values=None,
    ):  # fmt: skip
        if encoder_outputs is not None:
            raise NotImplementedError
        return super().forward(
            input_ids, attention_mask, decoder_input_ids, None, past_key_values, use_cache=True
        )


@pytest.mark.parametrize("kind", [TakesStates, TakesNothingBack])
def test_what_the_encoder_gave_is_handed_back_as_the_model_takes_it(kind):
    found = judged(kind(163), task="seq2seq")
    assert all(not isinstance(found[case], str) for case in ("steps", "chunks", "long"))
    assert not isinstance(found["padded"], str)


class ForgetsTheSource(CachedSeq2Seq):
    """Hides nothing of the source once something is cached, or ``raises`` there."""

    raises = None

    def forward(
        self, input_ids, attention_mask=None, decoder_input_ids=None, encoder_outputs=None,
        past_key_values=None, use_cache=False,
    ):  # fmt: skip
        if past_key_values is not None and attention_mask is not None:
            if self.raises is not None:
                raise self.raises("a mask beside a cache")
            attention_mask = None
        return super().forward(
            input_ids, attention_mask, decoder_input_ids, encoder_outputs, past_key_values,
            use_cache=use_cache,
        )  # fmt: skip


def test_the_source_is_hidden_beside_a_cache_as_without():
    found = judged(CachedSeq2Seq(163), task="seq2seq")
    assert found["padded"].value <= found["padded"].limit.value
    with pytest.raises(CheckFailed, match="the mask over the source is dropped"):
        kv_cache(probe_of(ForgetsTheSource(163), task="seq2seq"), "padded")


@pytest.mark.parametrize(
    ("raises", "outcome"), [(ValueError, NotApplicable), (IndexError, CheckFailed)]
)
def test_a_padded_source_is_refused_or_breaks_beside_a_cache(raises, outcome):
    model = ForgetsTheSource(163)
    model.raises = raises
    with pytest.raises(outcome, match="a mask beside a cache"):
        kv_cache(probe_of(model, task="seq2seq"), "padded")


class InAState(nn.Module):
    """A dict of the caller takes the keys and values of the target, and once those of the
    source; ``slips`` is a mistake."""

    slips = 0

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(models.VOCAB, 32), nn.Embedding(48, 32)
        self.own, self.other, self.query = nn.Linear(32, 96), nn.Linear(32, 64), nn.Linear(32, 32)
        self.head = nn.Linear(32, models.VOCAB)

    def place(self, ids, start=0):
        return self.tokens(ids) + self.positions(torch.arange(start, start + ids.shape[1]))

    def forward(self, src_tokens, prev_output_tokens, incremental_state=None):
        state = {} if incremental_state is None else incremental_state
        past = state.get("own")
        start = past[0].shape[1] if past else 0
        x = self.place(prev_output_tokens, start - self.slips if start else 0)
        q, *new = self.own(x).chunk(3, -1)
        k, v = [torch.cat(pair, 1) for pair in zip(past, new, strict=True)] if past else new
        state["own"] = k, v
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(start)
        x = x + F.scaled_dot_product_attention(q, k, v, mask)
        if "other" not in state:
            state["other"] = self.other(self.place(src_tokens)).chunk(2, -1)
        return self.head(x + F.scaled_dot_product_attention(self.query(x), *state["other"]))


def test_a_state_that_holds_the_sources_keys_once_is_a_cache():
    found = judged(InAState(), task="seq2seq")
    assert all(found[case].value < 1e-5 for case in ("steps", "chunks", "long"))
    model = InAState()
    model.slips = 1
    with pytest.raises(CheckFailed, match="must give the logits of the whole text"):
        kv_cache(probe_of(model, task="seq2seq"), "steps")


class Beside(Cached):
    """Fills a dict of the caller's, and returns another beside the logits."""

    def forward(self, ids, incremental_state=None):
        past = None if incremental_state is None else incremental_state.get("past")
        logits, new = self.run(ids, past)
        if incremental_state is not None:
            incremental_state["past"] = new
        return logits, {"inner_states": [self.tokens(ids), logits]}


def test_a_dict_in_which_a_cache_is_begun_holds_none():
    found = judged(Beside())
    assert all(found[case].value < 1e-5 for case in ("steps", "chunks", "long"))
    assert "made by the caller" in found["steps"].protocol


class BySteps(InBuffers):
    """Kept inside from step 0 on; ``step`` is how many tokens came before."""

    def forward(self, ids, step=None):
        if not step:
            self.reset_kv_cache()
        past = (self.cache_k, self.cache_v) if step else None
        logits, (k, v) = self.run(ids, past, step or 0)
        if step is not None:
            self.cache_k, self.cache_v = k, v
        return logits


def test_a_step_is_a_position_to_go_on_from():
    found = judged(BySteps())
    assert all(found[case].value < 1e-5 for case in ("steps", "chunks", "long"))


def test_what_cannot_be_decoded_is_skipped_with_the_reason():
    assert (
        judged(models.Decoder())["steps"] == "forward takes no cache and no position to go on from"
    )
    reason = judged(models.StartPosition())["steps"]
    assert reason.startswith("asked for a cache (start_pos") or "keeps nothing" in reason

    class Ignores(models.Decoder):
        def forward(self, input_ids, past_key_values=None):
            return super().forward(input_ids)

    assert judged(Ignores())["steps"] == "forward takes past_key_values and returns no cache"


def test_a_model_that_looks_ahead_has_nothing_to_cache():
    class Both(InATuple):
        def attend(self, x, past):
            return super().attend(x + x.mean(1, keepdim=True), past)

    assert "nothing to cache" in judged(Both())["steps"]


class Restarts(Cached):
    def forward(self, input_ids, position_ids=None, past_key_values=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        x = self.tokens(input_ids) + self.positions(position_ids)
        x, past = self.attend(x, past_key_values)
        return {"logits": self.head(x), "past_key_values": past}


def test_positions_that_restart_are_a_failure_unless_generation_gives_them():
    with pytest.raises(CheckFailed) as caught:
        kv_cache(probe_of(Restarts()), "steps")
    lines = caught.value.message.splitlines()
    assert lines[0] == "decoding with the cache must give the logits of the whole text"
    assert "position 1 of 11 is off by up to" in lines[1]
    assert "1 token after 1 cached ones, after another text; cache: past_key_values" in lines[1]
    assert lines[2] == "first module to differ: positions"
    assert lines[3] == (
        "likely: positions start at 0 again after cached tokens unless position_ids are given"
    )

    class Generates(Restarts):
        def prepare_inputs_for_generation(self):
            raise NotImplementedError

    assert any("unless position_ids" in note for note in judged(Generates())["steps"].notes)


class TakesLast(Cached):
    """Is given the whole text with the cache, of which it takes the last token itself."""

    cut_first = False

    def forward(self, input_ids, cache=None):
        if cache is not None and self.cut_first:
            input_ids = input_ids[:, -1:]
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        if cache is not None:
            x = x[:, -1:]
        x, cache = self.attend(x, cache)
        return self.head(x), cache


def test_a_model_may_take_the_last_token_of_the_whole_text():
    found = judged(TakesLast())
    assert found["chunks"].pieces == (3, *[1] * 8)
    for case in ("steps", "chunks", "long"):
        assert found[case].value <= found[case].limit.value
        assert any("takes its last token itself" in note for note in found[case].notes)


def test_positions_of_the_last_token_alone_are_a_failure():
    model = TakesLast()
    model.cut_first = True
    with pytest.raises(CheckFailed, match=r"position \d+ of 11 is off by"):
        kv_cache(probe_of(model), "steps")


class RingBuffer(InBuffers):
    """Refuses more tokens at once than its buffer holds."""

    error = ValueError

    def forward(self, in_idx, use_cache=False):
        if use_cache and in_idx.shape[1] > 16:
            raise self.error("a prefill longer than the buffer")
        return super().forward(in_idx, use_cache)


def test_a_long_prefill_that_is_refused_is_given_one_by_one():
    measured = kv_cache(probe_of(RingBuffer()), "long")
    assert set(measured.pieces) == {1}
    assert any("36 tokens at once are refused" in note for note in measured.notes)
    model = RingBuffer()
    model.error = IndexError
    with pytest.raises(CheckFailed, match="36 tokens after 0 cached ones .* raised IndexError"):
        kv_cache(probe_of(model), "long")


class PastPadding(Cached):
    """Positions that begin behind the padding id; ``slips`` where pieces go on one too early."""

    def __init__(self, slips: int = 0) -> None:
        super().__init__()
        self.slips = slips

    def forward(self, input_ids, position_ids=None, past_key_values=None):
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values[0].shape[2] - self.slips
            position_ids = torch.arange(start + 2, start + 2 + input_ids.shape[1])[None]
        x = self.tokens(input_ids) + self.positions(position_ids)
        x, past = self.attend(x, past_key_values)
        return {"logits": self.head(x), "past_key_values": past}


def test_positions_may_begin_behind_the_padding_id():
    config = {"pad_token_id": 1, "max_position_embeddings": 46}
    found = judged(PastPadding(), config)
    assert all(found[case].value <= found[case].limit.value for case in ("chunks", "long"))
    for case in ("steps", "chunks"):
        with pytest.raises(CheckFailed):
            kv_cache(probe_of(PastPadding(slips=1), config), case)
    with pytest.raises(CheckFailed):
        kv_cache(probe_of(PastPadding(), {**config, "pad_token_id": 5}), "chunks")


class Halved(Cached):
    """Computes in bfloat16 and returns float32; with a past it rounds once more, or ``slips``."""

    def __init__(self, slips: int = 0) -> None:
        super().__init__()
        self.slips = slips
        self.to(torch.bfloat16)

    def forward(self, idx, layer_past=None):
        start = 0 if layer_past is None else layer_past[0].shape[2] - self.slips
        logits, past = self.run(idx, layer_past, start)
        if layer_past is not None:
            logits = logits * 1.01 / 1.01
        return logits.float(), past


def test_what_rounds_in_half_precision_is_decided_in_float64():
    found = judged(Halved())
    assert any("rounding" in note for note in found["steps"].notes)
    with pytest.raises(CheckFailed, match="position 1 of 11 is off"):
        kv_cache(probe_of(Halved(slips=1)), "steps")


def test_one_token_at_a_time_is_enough():
    class Single(InATuple):
        def forward(self, idx, layer_past=None):
            assert layer_past is None or idx.shape[1] == 1
            return super().forward(idx, layer_past)

    notes = judged(Single())["chunks"].notes
    assert any("2 tokens at once after 3 cached ones are not taken" in note for note in notes)


def test_a_step_for_one_row_only():
    class OneRow(InATuple):
        def forward(self, idx, layer_past=None):
            logits, none, past = super().forward(idx, layer_past)
            return (logits, none, past) if layer_past is None else (logits[:1], none, past)

    with pytest.raises(CheckFailed, match=r"gave logits of shape \(1, 1, 101\)"):
        kv_cache(probe_of(OneRow()), "steps")


def test_a_step_that_raises_is_a_failure_with_its_place():
    class Raises(InATuple):
        def attend(self, x, past):
            if past is not None:
                raise RuntimeError("size mismatch")
            return super().attend(x, past)

    with pytest.raises(CheckFailed, match="raised RuntimeError: size mismatch") as caught:
        kv_cache(probe_of(Raises()), "steps")
    assert caught.value.where == "(model)"


class Stale(InBuffers):
    """Nothing is emptied: the method has another meaning."""

    def reset_kv_cache(self):
        if self.cache_k is not None:
            self.cache_v = torch.zeros_like(self.cache_v)


def test_a_cache_that_is_not_emptied_is_named():
    with pytest.raises(CheckFailed, match="something of the text before is kept"):
        kv_cache(probe_of(Stale()), "steps")


class Masked(Cached):
    """Takes a mask of everything that is cached; ``cut`` forgets the past columns."""

    cut = False

    def attend(self, x, past):
        b, t, _ = x.shape
        q, k, v = (s.view(b, t, 4, 8).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mask = torch.ones(t, k.shape[2], dtype=torch.bool).tril(k.shape[2] - t)
        if self.keep is not None:
            keep = self.keep.bool()
            if self.cut:
                keep = F.pad(keep[:, -t:], (k.shape[2] - t, 0), value=True)
            mask = mask & keep[:, None, None]
        scores = (q @ k.mT).masked_fill(~mask, -1e9)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, 32)
        return x + self.out(y), (k, v)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        self.keep = attention_mask
        start = 0 if past_key_values is None else past_key_values[0].shape[2]
        if position_ids is None:
            position_ids = torch.arange(start, start + input_ids.shape[1])[None]
        x = self.tokens(input_ids) + self.positions(position_ids)
        x, past = self.attend(x, past_key_values)
        return {"logits": self.head(x), "past_key_values": past}


def test_padding_on_the_left_goes_with_the_cache():
    assert judged(Masked())["padded"].value < 1e-5
    model = Masked()
    model.cut = True
    with pytest.raises(CheckFailed, match="the mask is cut to the new tokens"):
        kv_cache(probe_of(model), "padded")


class Rolling(Cached):
    """Sees the last six tokens and keeps no others; the mask covers the whole text."""

    def __init__(self, aligned: bool) -> None:
        super().__init__()
        self.aligned = aligned

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        start, kept = past_key_values or (0, None)
        b, t = input_ids.shape
        if position_ids is None:
            position_ids = torch.arange(start, start + t)[None]
        x = self.tokens(input_ids) + self.positions(position_ids)
        q, k, v = (s.view(b, t, 4, 8).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        if kept is not None:
            k, v = torch.cat([kept[0], k], 2), torch.cat([kept[1], v], 2)
        n = k.shape[2]
        back = torch.arange(n - t, n)[:, None] - torch.arange(n)
        seen = (back >= 0) & (back < 6)
        if attention_mask is not None:
            keep = attention_mask[:, -n:] if self.aligned else attention_mask
            seen = seen & keep.bool()[:, None, None] | (back == 0)
        y = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).reshape(b, t, 32)
        past = (start + t, (k[:, :, -5:], v[:, :, -5:]))
        return {"logits": self.head(x + self.out(y)), "past_key_values": past}


def test_a_mask_that_is_not_cut_with_the_cache_is_found():
    assert judged(Rolling(aligned=True))["padded"].value < 1e-5
    with pytest.raises(CheckFailed, match="a text of 5 tokens is decoded") as caught:
        kv_cache(probe_of(Rolling(aligned=False)), "padded")
    assert "cut the mask as the cache is" in str(caught.value)


def test_a_model_that_takes_no_mask_with_a_cache_is_not_judged():
    class Refuses(Masked):
        def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
            if attention_mask is not None and attention_mask.shape != input_ids.shape:
                raise ValueError("a mask for the new tokens, please")
            return super().forward(input_ids, None, position_ids, past_key_values)

    assert "a mask for the new tokens, please" in judged(Refuses())["padded"]


def test_padding_that_no_position_undoes_is_not_judged():
    class NoPositions(Masked):
        def forward(self, input_ids, attention_mask=None, past_key_values=None):
            return super().forward(input_ids, attention_mask, None, past_key_values)

    model = NoPositions()
    model.cut = True
    assert "without a cache too" in judged(model)["padded"]


def test_a_cache_in_lower_precision_is_found():
    class Half(InATuple):
        def attend(self, x, past):
            x, (k, v) = super().attend(x, past)
            return x, (k, v.bfloat16().to(v.dtype))

    with pytest.raises(CheckFailed):
        kv_cache(probe_of(Half()), "steps")


class Averages(nn.Module):
    """A running sum that fades; ``several`` says what becomes of more than one token behind it:
    each ``goes_on``, all are given the same ``state``, or they ``begin`` a new text."""

    def __init__(self, several: str) -> None:
        super().__init__()
        self.several = several
        self.tokens, self.head = nn.Embedding(models.VOCAB, 16), nn.Linear(16, models.VOCAB)
        self.mix = Fading()

    def forward(self, ids, state=None):
        x, state = self.mix(self.tokens(ids), state, self.several)
        return self.head(x), state


class AveragesAndAttention(Cached):
    """The same in front of attention, whose keys are cached, too."""

    def __init__(self, several: str) -> None:
        super().__init__()
        self.several, self.mix = several, Fading(32)

    def forward(self, ids, state=None):
        total, past = (None, None) if state is None else state
        start = 0 if past is None else past[0].shape[2]
        x = self.tokens(ids) + self.positions(torch.arange(start, start + ids.shape[1]))
        x, total = self.mix(x, total, self.several)
        x, past = self.attend(x, past)
        return self.head(x), (total, past)


class Fading(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.rate, self.into = nn.Parameter(torch.zeros(width)), nn.Linear(width, width)

    def forward(self, x, state, several):
        later = state is not None and x.shape[1] > 1
        if state is None or (later and several == "begin"):
            state = torch.zeros_like(x[:, 0])
        past, steps = state, []
        for step in self.into(x).unbind(1):
            state = (past if later and several == "state" else state) * self.rate.sigmoid() + step
            steps.append(state)
        return x + torch.stack(steps, 1).tanh(), state


@pytest.mark.parametrize("kind", [Averages, AveragesAndAttention])
def test_several_tokens_behind_a_state_go_on_from_it(kind):
    found = judged(kind("goes_on"))
    assert all(found[case].notes == () for case in ("steps", "chunks"))
    with pytest.raises(CheckFailed, match="has to go on from token to token") as caught:
        kv_cache(probe_of(kind("state")), "chunks")
    assert caught.value.where == "mix"


@pytest.mark.parametrize("kind", [Averages, AveragesAndAttention])
def test_a_state_that_several_tokens_begin_anew_is_noted(kind):
    (note,) = judged(kind("begin"))["chunks"].notes
    assert note == ("the cache is a state: several tokens after it at once do not go on from it")


class KeptByTheCaller(Cached):
    """Attention that fills a cache which it does not return; subclasses say what one is."""

    slips = 0

    def last(self, cache):
        return cache.kept

    def fill(self, cache, past):
        cache.kept = past

    def forward(self, ids, cache=None):
        last = None if cache is None else self.last(cache)
        start = 0 if last is None else last[0].shape[2] - self.slips
        logits, past = self.run(ids, last, start)
        if cache is not None:
            self.fill(cache, past)
        return logits


class LayerCache:
    def __init__(self):
        self.kept = None


class SlottedCache:
    __slots__ = ("kept",)

    def __init__(self):
        self.kept = None


class CacheOfLayers:
    def __init__(self, n_layers):
        self.places = [None] * n_layers


class InAnObject(KeptByTheCaller):
    """A LayerCache."""


class InSlots(KeptByTheCaller):
    """A SlottedCache."""

    def last(self, cache):
        assert isinstance(cache, SlottedCache)
        return cache.kept


class InObjects(KeptByTheCaller):
    """A LayerCache for each layer."""

    def last(self, cache):
        return cache[0].kept

    def fill(self, cache, past):
        cache[0].kept = past


class InACountedObject(KeptByTheCaller):
    """A CacheOfLayers."""

    def last(self, cache):
        return cache.places[0]

    def fill(self, cache, past):
        cache.places[0] = past


class CacheOfAConfig:
    def __init__(self, cfg):
        self.places = [None] * cfg["layers"]


class InAnObjectOfTheConfig(InACountedObject):
    """What a CacheOfAConfig holds is found by its configuration."""

    def __init__(self):
        super().__init__()
        self.cfg = {"layers": 1}

    def last(self, cache):
        assert isinstance(cache, CacheOfAConfig)
        return super().last(cache)


class TopLeft(InATuple):
    def attend(self, x, past):
        b, t, _ = x.shape
        q, k, v = (s.view(b, t, 4, 8).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, t, 32)), (k, v)


@pytest.mark.parametrize("case", ["steps", "long"])
def test_a_step_that_sees_the_first_key_alone_is_named(case):
    with pytest.raises(CheckFailed, match="likely: a step sees the first token alone"):
        kv_cache(probe_of(TopLeft()), case)


def test_a_state_that_is_not_kept_is_named():
    class Forgets(Averages):
        def forward(self, ids, state=None):
            logits, new = super().forward(ids, state)
            return logits, new * 0.5

    with pytest.raises(CheckFailed, match="likely: a state that a step does not write back"):
        kv_cache(probe_of(Forgets("goes_on")), "steps")


class CountedCache(LayerCache):
    def __init__(self):
        super().__init__()
        self.seen, self.most = 0, 48

    def advance(self, n):
        self.seen += n


class CountedByTheCaller(InAnObject):
    """Goes on where a CountedCache says; ``counts`` says who counts."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def forward(self, ids, cache=None):
        if cache is None:
            return self.run(ids, None)[0]
        logits, cache.kept = self.run(ids, cache.kept, cache.seen)
        if self.counts:
            cache.advance(ids.shape[1])
        return logits


def test_objects_in_a_list_are_a_cache():
    found = judged(InOnesOfItsOwn())
    assert all(found[case].value < 1e-5 for case in ("steps", "chunks", "long"))
    model = InOnesOfItsOwn()
    model.slips = 1
    with pytest.raises(CheckFailed, match="must give the logits of the whole text"):
        kv_cache(probe_of(model), "steps")


def test_a_cache_that_the_caller_counts_is_not_judged():
    assert judged(CountedByTheCaller(True))["steps"].value < 1e-5
    reason = judged(CountedByTheCaller(False))["steps"]
    assert reason == "forward takes cache and returns no cache"


class InADict(KeptByTheCaller):
    """A dict for each layer, or one."""

    def last(self, cache):
        return cache.get("kept")

    def fill(self, cache, past):
        cache["kept"] = past


class Counting(InAnObject):
    """Positions are counted in the model, until it is told to begin anew."""

    def __init__(self):
        super().__init__()
        self.current_pos = 0

    def reset_kv_cache(self):
        self.current_pos = 0

    def forward(self, ids, cache=None):
        start = self.current_pos if cache is not None else 0
        logits, past = self.run(ids, None if cache is None else cache.kept, start)
        if cache is not None:
            cache.kept, self.current_pos = past, start + ids.shape[1]
        return logits


_KEPT = [InAnObject, InSlots, InObjects, InACountedObject, InAnObjectOfTheConfig, InADict]


class CountingOn(Counting):
    def forward(self, ids, cache=None):
        if cache is not None:
            return super().forward(ids, cache)
        return self.run(ids, None, self.current_pos)[0]


def test_a_forward_without_a_cache_begins_at_the_start():
    with pytest.raises(CheckFailed, match="without a cache, the logits of a text move") as caught:
        kv_cache(probe_of(CountingOn()), "steps")
    assert caught.value.where == "positions"


@pytest.mark.parametrize("kind", [*_KEPT, Counting])
def test_a_cache_that_the_caller_makes_is_found(kind):
    found = judged(kind())
    assert all(found[case].value < 1e-5 for case in ("steps", "chunks", "long"))
    assert "made by the caller" in found["steps"].protocol


@pytest.mark.parametrize("kind", _KEPT)
def test_a_mistake_with_a_cache_of_the_caller_is_found(kind):
    model = kind()
    model.slips = 1
    with pytest.raises(CheckFailed, match="made by the caller"):
        kv_cache(probe_of(model), "steps")


def test_a_step_that_a_cache_of_the_caller_breaks_is_found():
    class Breaks(InAnObject):
        def last(self, cache):
            if cache.kept is not None:
                raise ValueError("once only")

    with pytest.raises(CheckFailed, match="once only"):
        kv_cache(probe_of(Breaks()), "steps")


def test_what_is_noted_in_a_dict_is_no_cache():
    class Notes(models.Decoder):
        def forward(self, ids, cache=None):
            hidden = self.hidden(ids)
            if cache is not None:
                cache["hidden"], cache["twice"] = hidden, hidden + hidden
            return self.head(hidden)

    assert judged(Notes())["steps"] == "forward takes cache and returns no cache"


def test_a_cache_of_another_library_is_not_made(monkeypatch):
    made = []

    class DiskCache:
        __module__ = "a_store"

        def __init__(self):
            made.append(self)

    class Ignores(models.Decoder):
        def forward(self, ids, cache=None):
            return super().forward(ids)

    monkeypatch.setitem(globals(), "DiskCache", DiskCache)
    assert judged(Ignores())["steps"] == "forward takes cache and returns no cache"
    assert not made
    DiskCache.__module__ = __name__
    assert judged(Ignores())["steps"] == "forward takes cache and returns no cache"
    assert made


def test_what_is_required_beside_no_cache_is_not_asked_for():
    class Masked(models.Decoder):
        def forward(self, ids, mask):
            return self.head(self.blocks[0](self.tokens(ids), mask=mask))

    with pytest.raises(NotApplicable, match="forward takes no cache"):
        kv_cache(probe_of(Masked()), "steps")


@pytest.mark.parametrize(
    ("after", "longer"), [((2, 6, 6, 8), True), ((2, 6, 5, 8), False), ((2, 7, 6, 8), False)]
)
def test_a_cache_that_grows_by_a_token_may_have_as_many_heads(after, longer):
    before = [torch.Size((2, 6, 5, 8))] * 2
    held = [True, True]
    assert cache_protocols._longer(before, [torch.Size(after)] * 2, held) is longer
    assert not cache_protocols._longer(before, before[:1], held)
