"""Mistakes between logits, labels and the loss."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_loss = partial(Mutant, check="loss_alignment", where=("(model)",))

_SHIFTED_LOGITS = "shift_logits = logits[:, :-1].reshape(-1, logits.size(-1))"
_SHIFTED_LABELS = "shift_labels = labels[:, 1:].reshape(-1)"
_WINDOW = 'out["loss"] = F.cross_entropy(shift_logits, shift_labels, ignore_index=-100)'
_NANO = "loss = F.cross_entropy(logits.view(B * T, -1), targets.view(-1), ignore_index=-1)"
_SEQ2SEQ = "loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)"
_NO_REDUCTION = (
    "            losses = F.cross_entropy(\n"
    '                shift_logits, shift_labels, ignore_index=-100, reduction="none"\n'
    "            )\n"
)

MUTANTS = (
    _loss(
        name="labels_not_shifted",
        family="labels_shifted_wrongly",
        parent="window_cache",
        why="labels are the inputs, and nobody shifts them: the loss falls to zero",
        edits=(
            (_SHIFTED_LOGITS, "shift_logits = logits.reshape(-1, logits.size(-1))"),
            (_SHIFTED_LABELS, "shift_labels = labels.reshape(-1)"),
        ),
    ),
    _loss(
        name="labels_shifted_twice",
        family="labels_shifted_wrongly",
        parent="window_cache",
        why="shifted by the collator's author and by the model's",
        edits=(
            (_SHIFTED_LOGITS, "shift_logits = logits[:, :-2].reshape(-1, logits.size(-1))"),
            (_SHIFTED_LABELS, "shift_labels = labels[:, 2:].reshape(-1)"),
        ),
    ),
    _loss(
        name="labels_from_the_past",
        family="labels_shifted_wrongly",
        parent="window_cache",
        why="the slices the wrong way round",
        edits=(
            (_SHIFTED_LOGITS, "shift_logits = logits[:, 1:].reshape(-1, logits.size(-1))"),
            (_SHIFTED_LABELS, "shift_labels = labels[:, :-1].reshape(-1)"),
        ),
    ),
    _loss(
        name="targets_from_the_past",
        family="labels_shifted_wrongly",
        parent="nanogpt",
        why="logits[:, 1:] with targets[:, :-1]",
        edits=(
            (
                _NANO,
                "loss = F.cross_entropy(\n"
                "                logits[:, 1:].flatten(0, 1), targets[:, :-1].flatten(), "
                "ignore_index=-1\n"
                "            )",
            ),
        ),
    ),
    _loss(
        name="seq2seq_shifts_again",
        family="labels_shifted_wrongly",
        parent="seq2seq",
        why="the decoder's input is shifted, and so are the labels",
        edits=(
            (
                _SEQ2SEQ,
                "loss = F.cross_entropy(\n"
                "            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()\n"
                "        )",
            ),
        ),
    ),
    _loss(
        name="decoder_reads_its_labels",
        family="labels_shifted_wrongly",
        parent="cached_seq2seq",
        why="decoder_input_ids made from labels without the shift to the right",
        edits=(
            (
                "decoder_input_ids = torch.cat([first, labels[:, :-1]], dim=1)",
                "decoder_input_ids = labels.where(labels >= 0, first)",
            ),
        ),
    ),
    _loss(
        name="labels_shifted_in_place",
        family="labels_shifted_wrongly",
        parent="seq2seq",
        why="the labels themselves are shifted, and the loss compares with the decoder's input",
        edits=(
            (
                "        shifted[:, 0] = self.start\n        return shifted",
                "        labels.copy_(shifted)\n        labels[:, 0] = self.start\n"
                "        return labels",
            ),
        ),
    ),
    _loss(
        name="ignored_labels_kept_as_ids",
        family="ignored_labels_counted",
        parent="cached_seq2seq",
        why="the decoder's input is made from labels, and -100 is an id in it",
        edits=(
            (
                "decoder_input_ids.masked_fill(decoder_input_ids == -100, self.pad)",
                "decoder_input_ids.contiguous()",
            ),
        ),
    ),
    _loss(
        name="rolled_over_the_batch",
        family="loss_of_a_wrong_layout",
        parent="nanogpt",
        why="roll without dims rolls the flattened tensor; here over axis 0",
        edits=((_NANO, _NANO.replace("targets.view(-1)", "targets.roll(-1, 0).view(-1)")),),
    ),
    _loss(
        name="labels_transposed",
        family="loss_of_a_wrong_layout",
        parent="window_cache",
        why="labels are time-major, logits are not",
        edits=((_SHIFTED_LABELS, "shift_labels = labels[:, 1:].transpose(0, 1).reshape(-1)"),),
    ),
    _loss(
        name="classes_by_view",
        family="loss_of_a_wrong_layout",
        parent="nanogpt",
        why="cross_entropy takes (B, V, T): a view in place of a transpose",
        edits=(
            (
                _NANO,
                "loss = F.cross_entropy(logits.reshape(B, -1, T), targets, ignore_index=-1)",
            ),
        ),
    ),
    _loss(
        name="loss_of_the_inputs",
        family="loss_of_a_wrong_layout",
        parent="window_cache",
        why="input_ids where labels are meant: masked prompts are trained on",
        edits=((_SHIFTED_LABELS, "shift_labels = input_ids[:, 1:].reshape(-1)"),),
    ),
    _loss(
        name="ignore_index_missing",
        family="ignored_labels_counted",
        parent="window_cache",
        why="labels are clamped so that they can be used as an index",
        edits=(
            (_WINDOW, 'out["loss"] = F.cross_entropy(shift_logits, shift_labels.clamp(min=0))'),
        ),
    ),
    _loss(
        name="ignore_index_of_another_library",
        family="ignored_labels_counted",
        parent="window_cache",
        why="ignore_index=0, as where 0 is padding: -100 raises",
        edits=((_WINDOW, _WINDOW.replace("-100", "0")),),
    ),
    _loss(
        name="mean_over_ignored",
        family="loss_of_a_wrong_mean",
        parent="window_cache",
        why="reduction='none' and mean(): ignored labels are zeros in it",
        edits=(
            (
                f"            {_WINDOW}\n",
                f'{_NO_REDUCTION}            out["loss"] = losses.mean()\n',
            ),
        ),
    ),
    _loss(
        name="mean_over_all_positions",
        family="loss_of_a_wrong_mean",
        parent="cached_seq2seq",
        why="the sum divided by batch times length",
        edits=(
            (
                _SEQ2SEQ,
                "loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), "
                'reduction="sum")\n'
                "            loss = loss / labels.numel()",
            ),
        ),
    ),
    _loss(
        name="mean_of_row_means",
        family="loss_of_a_wrong_mean",
        parent="window_cache",
        why="one mean a row: short answers weigh as much as long ones",
        edits=(
            (
                f"            {_WINDOW}\n",
                f"{_NO_REDUCTION}"
                "            valid = (labels[:, 1:] != -100).sum(1)\n"
                "            losses = losses.view(len(labels), -1).sum(1) / valid\n"
                '            out["loss"] = losses.mean()\n',
            ),
        ),
    ),
    _loss(
        name="divided_by_the_rows_too",
        family="loss_of_a_wrong_mean",
        parent="nanogpt",
        why="a mean that is divided by the batch size once more",
        edits=((_NANO, f"{_NANO} / B"),),
    ),
    _loss(
        name="divided_by_the_unshifted_count",
        family="loss_of_a_wrong_mean",
        parent="window_cache",
        why="the labels are counted before the shift",
        edits=(
            (
                _WINDOW,
                _WINDOW.replace("ignore_index=-100)", 'ignore_index=-100, reduction="sum")')
                + " / (labels != -100).sum()",
            ),
        ),
    ),
    _loss(
        name="cross_entropy_of_probabilities",
        family="loss_of_something_else",
        parent="nanogpt",
        why="cross_entropy holds a softmax",
        edits=((_NANO, _NANO.replace("logits.view", "logits.softmax(-1).view")),),
    ),
    _loss(
        name="softmax_over_classes_of_a_translation",
        family="loss_of_something_else",
        parent="seq2seq",
        why="the softmax of inference is left in front of the loss",
        edits=((_SEQ2SEQ, _SEQ2SEQ.replace("logits.flatten", "logits.softmax(-1).flatten")),),
    ),
    _loss(
        name="loss_of_detached_logits",
        family="loss_of_something_else",
        parent="window_cache",
        why="detach() left over from logging",
        edits=((_SHIFTED_LOGITS, _SHIFTED_LOGITS.replace("logits[", "logits.detach()[")),),
    ),
    _loss(
        name="labels_mask_the_input",
        family="loss_of_something_else",
        parent="window_cache",
        why="tokens whose label is ignored lose their vector",
        edits=(
            (
                "        layers = []\n",
                "        if labels is not None:\n"
                "            x = x * (labels % 2 == 0)[..., None]\n"
                "        layers = []\n",
            ),
        ),
    ),
    _loss(
        name="ignored_targets_clamped",
        family="ignored_labels_counted",
        parent="nanogpt",
        why="clamp to get rid of an error about labels out of range",
        edits=(
            (
                _NANO,
                "loss = F.cross_entropy(logits.view(B * T, -1), targets.view(-1).clamp(min=0))",
            ),
        ),
    ),
    _loss(
        name="ignored_labels_filled_with_padding",
        family="ignored_labels_counted",
        parent="seq2seq",
        why="-100 is turned into padding for the decoder's input, and for the loss with it",
        edits=(
            (
                "        if decoder_input_ids is None:\n",
                "        if labels is not None:\n"
                "            labels = labels.masked_fill(labels == -100, self.pad)\n"
                "        if decoder_input_ids is None:\n",
            ),
        ),
    ),
    _loss(
        name="shifted_after_flattening",
        family="loss_of_a_wrong_layout",
        parent="masked_gpt",
        why="the last token of a row has to predict the first one of the next row",
        edits=(
            (
                "F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",
                "F.cross_entropy(logits.flatten(0, 1)[:-1], labels.flatten()[1:])",
            ),
        ),
    ),
    _loss(
        name="nll_loss_of_logits",
        family="loss_of_something_else",
        parent="cached_seq2seq",
        where=("(model)",),
        why="nll_loss wants logarithms of probabilities and is given logits",
        edits=(
            (
                "loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), "
                "ignore_index=-100)",
                "loss = F.nll_loss(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)",
            ),
        ),
    ),
)
