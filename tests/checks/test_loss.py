"""What loss_alignment says, decides and leaves to the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.tier1.loss import loss_alignment
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models


def judge(model: nn.Module, config=None, task=None):
    return loss_alignment(Probe(Subject(model, config, task=task)))


class Contract(models.Decoder):
    """``labels`` in, ``loss`` and ``logits`` out, shifted inside; subclasses say which loss."""

    def loss(self, logits, labels):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def forward(self, input_ids, labels=None):
        logits = self.head(self.hidden(input_ids))
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = self.loss(logits, labels)
        return out


def test_a_loss_that_is_shifted_inside():
    measured = judge(Contract())
    assert measured.shift == 1
    assert measured.factor == pytest.approx(1, abs=1e-4)
    assert (measured.by, measured.ignored, measured.notes) == ("gradient", -100, ())


def test_a_failure_says_rule_finding_place_cause_and_way_out():
    class NotShifted(Contract):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.CrossEntropyLoss()

        def loss(self, logits, labels):
            return self.criterion(logits.flatten(0, 1), labels.flatten())

    with pytest.raises(CheckFailed) as caught:
        judge(NotShifted())
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("the loss must be the mean cross entropy")
    assert lines[1] == (
        "the output at position t is drawn to the label at its own position: labels[:, t+0]; "
        "expected is t+1"
    )
    assert lines[2] == "the loss comes from: criterion"
    assert lines[3] == "likely: labels are not shifted: the model learns to copy its input"
    assert lines[4].startswith("meant so? declare it")
    assert caught.value.where == "criterion"


@pytest.mark.parametrize("kind", [models.Lecture, models.LastLogits])
def test_targets_come_shifted_and_logits_in_any_shape(kind):
    measured = judge(kind())
    assert measured.shift == 0
    assert measured.notes == ("labels are shifted by the caller",)


class Smoothed(Contract):
    def loss(self, logits, labels):
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(flat, wanted, label_smoothing=0.1)


class Summed(Contract):
    def loss(self, logits, labels):
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(flat, wanted, reduction="sum")


class Scaled(Contract):
    def loss(self, logits, labels):
        return 0.5 * super().loss(logits, labels)


class Balanced(Contract):
    def loss(self, logits, labels):
        return super().loss(logits, labels) + 0.01 * self.head.weight.pow(2).sum()


class Focal(Contract):
    def loss(self, logits, labels):
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        losses = F.cross_entropy(flat, wanted, reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).mean()


class Weighted(Contract):
    def loss(self, logits, labels):
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(flat, wanted, weight=torch.linspace(1, 2, models.VOCAB))


class Normaliser(Contract):
    def loss(self, logits, labels):
        return super().loss(logits, labels) + 1e-2 * logits.logsumexp(-1).pow(2).mean()


NOTES = {
    Smoothed: "labels are smoothed by 0.1",
    Summed: "the loss is a sum, not a mean",
    Scaled: "the loss is 0.5 times the mean cross entropy",
    Balanced: "besides the cross entropy",
    Focal: "outputs count differently",
    Normaliser: "a term of the logits alone",
    Weighted: "outputs count differently",
}


@pytest.mark.parametrize("kind", NOTES)
def test_what_people_do_with_a_loss_is_noted(kind):
    measured = judge(kind())
    assert measured.shift == 1
    assert any(NOTES[kind] in note for note in measured.notes)


class SmoothedOverAll(Smoothed):
    """The sum over labels that count is divided by the number of all."""

    def loss(self, logits, labels):
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        losses = F.cross_entropy(flat, wanted, label_smoothing=0.1, reduction="none")
        return losses.mean()


def test_smoothed_labels_that_are_ignored_have_no_part_in_the_mean():
    measured = judge(Smoothed())
    assert (measured.factor, measured.ignored) == (pytest.approx(1, abs=1e-3), -100)
    with pytest.raises(CheckFailed, match="the sum is still divided by"):
        judge(SmoothedOverAll())


class Probabilities(models.Decoder):
    """Gives probabilities, and takes their logarithm for the loss."""

    def forward(self, idx, targets=None):
        p = self.head(self.hidden(idx)).softmax(-1)
        if targets is None:
            return p, None
        return p, F.nll_loss(p.log().flatten(0, 1), targets.flatten())


class Logarithms(models.Decoder):
    def forward(self, idx, targets=None):
        scores = self.head(self.hidden(idx)).log_softmax(-1)
        if targets is None:
            return scores, None
        return scores, F.nll_loss(scores.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("kind", [Probabilities, Logarithms])
def test_probabilities_with_their_own_loss(kind):
    measured = judge(kind())
    assert measured.shift == 0
    assert measured.factor == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("returned", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (F.nll_loss, "minus the probability of each label"),
        (F.cross_entropy, "softmax is applied twice"),
    ],
    ids=["no_logarithm", "softmax_twice"],
)
def test_losses_of_probabilities_that_want_something_else(loss, found, returned):
    class Mistaken(models.Decoder):
        def forward(self, idx, targets=None):
            logits = self.head(self.hidden(idx))
            p = logits.softmax(-1)
            given = logits if returned == "logits" else p
            if targets is None:
                return given, None
            return given, loss(p.flatten(0, 1), targets.flatten())

    with pytest.raises(CheckFailed, match=found):
        judge(Mistaken())


class LossOnly(models.Decoder):
    """Nothing but the loss comes back with targets."""

    def forward(self, idx, targets=None):
        logits = self.head(self.hidden(idx))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


class WithMemory(models.Decoder):
    """(logits, memory), and (loss, memory) where labels are given."""

    def forward(self, input_ids, labels=None):
        x = self.hidden(input_ids)
        logits, memory = self.head(x), x[:, -4:]
        if labels is None:
            return logits, memory
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), memory


def test_a_memory_beside_the_loss_is_not_taken_for_logits():
    measured = judge(WithMemory())
    assert (measured.shift, measured.by) == (0, "value")


class Copied(models.Decoder):
    """Returned logits are not those on the path of the loss."""

    wrong = False

    def forward(self, idx, targets=None):
        logits = self.head(self.hidden(idx))
        if targets is None:
            return logits, None
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        count = targets.numel() if self.wrong else (targets != -100).sum()
        return logits.detach(), losses.sum() / count


@pytest.mark.parametrize(("kind", "ignored"), [(LossOnly, -1), (Copied, -100)])
def test_the_value_tells_where_the_gradient_cannot(kind, ignored):
    measured = judge(kind())
    assert (measured.shift, measured.by, measured.ignored) == (0, "value", ignored)


def test_the_value_tells_what_counts_in_the_mean():
    model = Copied()
    model.wrong = True
    with pytest.raises(CheckFailed, match="the mean over those that count is"):
        judge(model)


class Classifier(models.Decoder):
    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.score = nn.Linear(32, outputs)

    def forward(self, input_ids, labels=None):
        logits = self.score(self.hidden(input_ids)[:, -1])
        if labels is None:
            return {"logits": logits}
        return {"logits": logits, "loss": self.loss(logits, labels)}

    def loss(self, logits, labels):
        return F.cross_entropy(logits, labels)


def test_a_classifier():
    assert judge(Classifier()).shift == 0


def test_a_classifier_that_mixes_rows():
    class Mixed(Classifier):
        def loss(self, logits, labels):
            return F.cross_entropy(logits, labels.roll(1))

    with pytest.raises(CheckFailed, match="other classes than their labels"):
        judge(Mixed())


class LastWithoutTargets(models.Decoder):
    """All logits are on the path of the loss, and the last ones come back without it."""

    def forward(self, idx, targets=None):
        logits = self.head(self.hidden(idx))
        if targets is None:
            return logits[:, [-1]]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


SKIPPED = {
    "they are not on its path": (LastWithoutTargets(), None),
    "one number is given": (Classifier(1), {"task": "classification"}),
    "problem_type is multi_label": (
        Classifier(),
        {"problem_type": "multi_label_classification"},
    ),
    "forward takes no labels": (models.Decoder(), None),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_what_has_no_cross_entropy_is_skipped(reason):
    with pytest.raises(NotApplicable, match=reason):
        judge(*SKIPPED[reason])


def test_the_configuration_is_given_back():
    class Decides(Classifier):
        def loss(self, logits, labels):
            self.config.problem_type = "single_label_classification"
            return super().loss(logits, labels)

    class Config:
        problem_type = None

        def __init__(self) -> None:
            self.problem_type = None

    model = Decides()
    model.config = Config()
    judge(model)
    assert model.config.problem_type is None


FAILURES = {
    "have a gradient": lambda z, y: F.cross_entropy(z, y.clamp(min=0)),
    "has no gradient": lambda z, y: F.cross_entropy(z.detach(), y),
    "-100 must be ignored": lambda z, y: F.cross_entropy(z, y, ignore_index=7),
    "the loss is nan": lambda z, y: F.cross_entropy(z, y) / 0 * 0,
    "points to no label": lambda z, y: F.cross_entropy(z.reshape(z.shape[1], -1).mT, y),
}


@pytest.mark.parametrize("finding", FAILURES)
def test_what_fails(finding):
    class Wrong(Contract):
        def loss(self, logits, labels):
            return FAILURES[finding](logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    with pytest.raises(CheckFailed, match=finding):
        judge(Wrong())


def test_labels_that_reach_the_logits():
    class Peeks(Contract):
        def forward(self, input_ids, labels=None):
            if labels is not None:
                input_ids = torch.where(labels % 2 == 0, labels.clamp(min=0), input_ids)
            return super().forward(input_ids, labels)

    with pytest.raises(CheckFailed, match="when labels are given"):
        judge(Peeks())


def test_inputs_that_are_corrupted_at_random_to_train():
    class Corrupts(Contract):
        def forward(self, input_ids, labels=None):
            if labels is not None:
                input_ids = torch.where(torch.rand(input_ids.shape) < 0.3, 0, input_ids)
            return super().forward(input_ids, labels)

    assert "with labels, the forward draws random numbers" in judge(Corrupts()).notes


class FromLabels(models.Translator):
    """Makes its decoder's input from labels, as BART does."""

    def shifted(self, labels):
        return labels.roll(1, 1).masked_fill(labels.roll(1, 1) == -100, 0).index_fill(1, ONE, 2)

    def forward(self, input_ids, decoder_input_ids=None, labels=None):
        if decoder_input_ids is None:
            decoder_input_ids = self.shifted(labels)
        logits = super().forward(input_ids, decoder_input_ids)
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


ONE = torch.tensor([0])


class InPlace(FromLabels):
    def shifted(self, labels):
        return labels.copy_(super().shifted(labels))


class KeepsIgnored(FromLabels):
    def shifted(self, labels):
        return labels.roll(1, 1).index_fill(1, ONE, 2)


def test_a_decoder_whose_input_is_made_from_labels():
    assert judge(FromLabels()).ignored == -100
    with pytest.raises(CheckFailed, match="the labels of the caller are other ones"):
        judge(InPlace())
    with pytest.raises(CheckFailed, match="labels of -100 are not taken") as caught:
        judge(KeepsIgnored())
    assert "replace it by the padding id" in caught.value.message


class Continued(Contract):
    """The last output of a text has a label, too: the one that stands behind the last one."""

    def __init__(self, behind, ignores):
        super().__init__()
        self.behind, self.ignores = behind, ignores

    def loss(self, logits, labels):
        labels = F.pad(labels, (0, 1), value=self.behind)[:, 1:].flatten()
        labels = labels if self.ignores else labels.clamp(min=0)
        return F.cross_entropy(logits.flatten(0, 1), labels)


def test_a_label_behind_the_last_one_is_an_end_or_one_that_is_not_ignored():
    assert judge(Continued(-100, ignores=True)).notes == ()
    ends = judge(Continued(2, ignores=True))
    assert (ends.shift, ends.ignored) == (1, -100)
    assert "outputs without a label of their own" in ends.notes[0]
    with pytest.raises(CheckFailed, match="outputs whose label is -100 have a gradient"):
        judge(Continued(-100, ignores=False))


class OfText(models.Decoder):
    """The loss is asked for by a flag, and is that of the text itself."""

    def __init__(self, cut=1):
        super().__init__()
        self.cut = cut

    def forward(self, x, return_loss=False):
        logits = super().forward(x)
        if not return_loss:
            return logits
        return F.cross_entropy(logits[:, : x.shape[1] - self.cut].mT, x[:, self.cut :])


class Behind(OfText):
    """Outputs are made of the tokens before: each is the one for its own place."""

    def __init__(self):
        super().__init__(cut=0)

    def hidden(self, ids):
        return super().hidden(F.pad(ids, (1, -1)))


def test_the_loss_of_a_text():
    assert judge(OfText()).shift == 1
    assert judge(Behind()).shift == 0
    with pytest.raises(CheckFailed, match="the tokens 0 further on; expected is 1"):
        judge(OfText(cut=0))
    with pytest.raises(CheckFailed, match="the tokens 2 further on"):
        judge(OfText(cut=2))


def test_a_model_that_is_frozen_as_a_whole_has_no_loss_to_judge():
    with pytest.raises(NotApplicable, match="no parameter asks for a gradient"):
        judge(Contract().requires_grad_(False))
