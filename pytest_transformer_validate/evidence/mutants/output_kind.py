"""Mistakes after which the output is no longer made of logits."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_kind = partial(Mutant, check="output_kind", where=("(model)",))

MUTANTS = (
    _kind(
        name="softmax_before_cross_entropy",
        family="logits_squashed",
        parent="sdpa_gpt",
        why="cross entropy applies softmax itself",
        edits=(('"logits": self.head(x)', '"logits": F.softmax(self.head(x), dim=-1)'),),
    ),
    _kind(
        name="softmax_of_classifier",
        family="logits_squashed",
        parent="text_classifier",
        why="probabilities, as in Keras",
        edits=(
            (
                "return self.classifier(self.pool(self.norm(x), mask))",
                "return self.classifier(self.pool(self.norm(x), mask)).softmax(dim=1)",
            ),
        ),
    ),
    _kind(
        name="sigmoid_of_classifier",
        family="logits_squashed",
        parent="text_classifier",
        why="left over from a binary classifier",
        edits=(
            (
                "return self.classifier(self.pool(self.norm(x), mask))",
                "return torch.sigmoid(self.classifier(self.pool(self.norm(x), mask)))",
            ),
        ),
    ),
    _kind(
        name="tanh_of_logits",
        family="logits_squashed",
        parent="alibi",
        why="soft capping without its factor",
        edits=(
            (
                "return self.to_logits(self.final_norm(x))",
                "return torch.tanh(self.to_logits(self.final_norm(x)))",
            ),
        ),
    ),
    _kind(
        name="relu_behind_head",
        family="logits_squashed",
        parent="bert",
        why="an activation behind every layer, the last one too",
        edits=(("return self.decoder(hidden)", "return F.relu(self.decoder(hidden))"),),
    ),
    _kind(
        name="gelu_behind_head",
        family="logits_squashed",
        parent="seq2seq",
        why="an activation behind every layer, the last one too",
        edits=(("return self.generator(y)", "return F.gelu(self.generator(y))"),),
    ),
    _kind(
        name="argmax_of_logits",
        family="predictions_for_logits",
        parent="sdpa_gpt",
        why="predictions are returned, not what they are made of",
        edits=(('"logits": self.head(x)', '"logits": self.head(x).argmax(dim=-1)'),),
    ),
    _kind(
        name="one_hot_of_classes",
        family="predictions_for_logits",
        parent="vit",
        why="predictions are returned as one-hot vectors",
        edits=(
            (
                "return self.head(x[:, 0])",
                "logits = self.head(x[:, 0])\n"
                "        chosen = nn.functional.one_hot(logits.argmax(dim=-1), logits.size(-1))\n"
                "        return chosen.to(logits.dtype)",
            ),
        ),
    ),
    _kind(
        name="head_forgotten",
        family="output_of_a_wrong_width",
        parent="llama",
        why="hidden states are returned, the head is never called",
        edits=(("self.lm_head(self.norm(x))", "self.norm(x)"),),
    ),
    _kind(
        name="hidden_states_of_encoder",
        family="output_of_a_wrong_width",
        parent="bert",
        why="the transform of the head is kept, its decoder forgotten",
        edits=(("return self.decoder(hidden)", "return hidden"),),
    ),
    _kind(
        name="head_without_last_id",
        family="output_of_a_wrong_width",
        parent="moe",
        where=("output",),
        why="the vocabulary is counted without its last id",
        edits=(
            (
                "self.output = nn.Linear(d_model, vocab_size, bias=False)",
                "self.output = nn.Linear(d_model, vocab_size - 1, bias=False)",
            ),
        ),
    ),
    _kind(
        name="one_class_too_many",
        family="output_of_a_wrong_width",
        parent="text_classifier",
        where=("classifier",),
        why="a background class that nobody declared",
        edits=(
            (
                "self.classifier = nn.Linear(embed_dim, num_labels)",
                "self.classifier = nn.Linear(embed_dim, num_labels + 1)",
            ),
        ),
    ),
    _kind(
        name="next_ids_for_logits",
        family="predictions_for_logits",
        parent="cached_gpt",
        why="greedy decoding moved into the model",
        edits=(
            (
                "return self.lm_head(self.ln_f(x)), presents",
                "return self.lm_head(self.ln_f(x)).argmax(dim=-1), presents",
            ),
        ),
    ),
)
