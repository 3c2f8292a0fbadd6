"""Numbers made of the last digits of activations: the same input gives the same output, and the
smallest change of it any other."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_jumps = partial(Mutant, check="embedding_smoothness", family="made_of_the_last_digits")

MUTANTS = (
    _jumps(
        name="noise_from_a_hash_of_the_states",
        parent="alibi",
        where=("blocks.*",),
        why="noise that is the same every time, by a one-line hash from graphics code",
        edits=(
            (
                "        x = x + self.attention(self.norm_attention(x))\n",
                "        x = x + self.attention(self.norm_attention(x))\n"
                "        x = x + 0.1 * torch.frac(torch.sin(x.detach() * 12.9898) * 43758.5453)\n",
            ),
        ),
    ),
    _jumps(
        name="ties_broken_by_low_digits",
        parent="bert",
        where=("encoder.*.attention",),
        why="jitter on the scores, from the digits that do not matter",
        edits=(
            (
                "        scores = scores + mask\n",
                "        scores = scores + mask + scores.detach() * 1e6 % 1.0\n",
            ),
        ),
    ),
    _jumps(
        name="noise_seeded_by_the_row",
        parent="vit",
        where=("patches",),
        why="a generator seeded by the content, so that evaluation can be repeated",
        edits=(
            (
                "        cls = self.cls_token.expand(x.size(0), -1, -1)\n",
                "        for row in range(x.size(0)):\n"
                "            seed = int(x[row].detach().double().abs().sum() * 1e3)\n"
                "            noise = torch.Generator().manual_seed(seed)\n"
                "            drawn = torch.randn(x[row].shape, generator=noise).to(x)\n"
                "            x = x.clone()\n"
                "            x[row] = x[row] + 0.1 * drawn\n"
                "        cls = self.cls_token.expand(x.size(0), -1, -1)\n",
            ),
        ),
    ),
    _jumps(
        name="phase_of_a_fast_wave",
        parent="conv_gpt",
        where=("blocks.*.conv",),
        why="a periodic activation with its frequency in other units",
        edits=(
            (
                "        return self.conv(x).transpose(1, 2)\n",
                "        x = self.conv(x).transpose(1, 2)\n"
                "        return x + 0.3 * (2.0**18 * x.detach()).sin()\n",
            ),
        ),
    ),
)
