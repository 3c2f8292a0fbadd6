"""Any configuration class of transformers, made tiny by the names of its fields.

A field is shrunk where its name and its default say that it is a size. A field whose default is
None is left out, so that the configuration derives it from the sizes that it was given. What has
to agree keeps agreeing because it is shrunk alike: equal defaults of one kind become equal
numbers, lists with an entry a layer keep the same layers, lists of widths are divided by one
number.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VOCABULARY, LABELS = 200, 3


@dataclass(frozen=True)
class Sizes:
    """The sizes that a tiny model aims at: at most so many, and exactly so many experts.

    ``fill``: also give a size to fields without a default that stay None, such as a ``head_dim``
    that the model insists on.
    """

    hidden: int = 64
    narrow: int = 32
    feed_forward: int = 128
    heads: int = 4
    few_heads: int = 2
    head_dim: int = 16
    rank: int = 16
    layers: int = 2
    stage_depth: int = 1
    experts: int = 8
    per_token: int = 2
    window: int = 32
    positions: int = 64
    image: int = 32
    patch: int = 8
    fill: bool = False


# Tried in this order on the whole name of a field that holds an integer. The cap is the largest
# value that the field may keep: a number, or the name of one in Sizes. None: it is no size.
_CAPS: tuple[tuple[str, str | int | None], ...] = (
    (r".*_(id|ids|index|idx|indices|token)|vocab_offset|max_.*_unit_.*", None),
    (r".*tokenizer_chunk.*|chunk_(length|left|right).*", None),
    (r".*vocab.*|prompt_types|segment_types|.*hash_buckets", VOCABULARY),
    (r"num_labels", LABELS),
    (r".*experts?_per_tok(en)?|moe_?top_?k|moe_k", "per_token"),
    (r"(mamba_)?(n|num)_?(expert_)?groups?", 2),
    (r"topk_group|.*shared_experts?|.*offset|first_k_dense.*|num_dense.*", 1),
    (r"num_kv_shared_layers", 0),
    (r".*(period|interval|_step|every_n_layers|frequency|pattern)", 2),
    (r"(.*_)?(num|n|local|routed)_(.*_)?experts?|zero_expert_num", "experts"),
    (r".*(kv|key|index).*heads|num_query_groups", "few_heads"),
    (r".*head_?dims?|.*d_head|dim_head|d_kv|kv_channels|.*head_size|qk_nope.*", "head_dim"),
    (r"(coordinate|shape)_size", "head_dim"),
    (r"qk_rope_.*|rotary_dim", 8),
    (r".*rank", "rank"),
    (r".*heads?", "heads"),
    (r"(.*_)?(num|n|hidden|encoder|decoder)_(.*_)?(layers?|blocks)|n_layers?|depth", "layers"),
    (r"(.*_)?layers?", "layers"),
    (r".*(window|chunk|topk|top_k|radius|block_size|block_length|budget).*", "window"),
    (r".*(landmarks|segment_means).*", "window"),
    (r".*compress_ratio", 4),
    (r".*(kernel|stride|padding|factor|mult|bucket|scale|hash|ratio|divis).*", None),
    (
        r".*(position|n_ctx|max_seq|max_len|context|_length|seq_len|distance|pos_emb).*",
        "positions",
    ),
    (r"image_size|crop_size|input_size", "image"),
    (r"patch_size", "patch"),
    (r".*(intermediate|ffn|feed_forward|dff|d_ff|dim_ff|inner|mlp_dim).*", "feed_forward"),
    (r".*(hidden|d_model|n_embd|dim|embed|emb|width|channels?|size|latents|state).*", "hidden"),
)
_UNFILLED = frozenset({"hidden", "layers", "rank", "positions", "image", "patch"})
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
_STAGED = re.compile(r"depths?|hidden_sizes|.*num_blocks|.*block_repeats")
_STAGES = re.compile(r"depths?|.*num_blocks|.*block_repeats|.*_of_layers|block_sizes")
_WIDTHS = re.compile(r".*(hidden_sizes|embed_dims?|channels|dims)|embedding_size")
_STAGE_DIVISOR = 4


def tiny_config(config_class: type[Any], sizes: Sizes, overrides: Mapping[str, Any]) -> Any:
    """An instance of ``config_class`` with every size capped; ``overrides`` win.

    An override may be a mapping where the field is itself a configuration.
    """
    return _Shrinker(config_class, sizes, {}).config(overrides)


def shrink_special_ids(config: Any) -> None:
    """Bring ids that a configuration derives by itself into the small vocabulary."""
    for name, value in list(vars(config).items()):
        if name.endswith("token_id") and _is_int(value):
            setattr(config, name, _shrunk_token(value))
        elif name.endswith("token_id") and _is_ints(value):
            setattr(config, name, [_shrunk_token(v) for v in value])


class _Shrinker:
    """Shrinks one configuration class; a part of a composite has its own."""

    def __init__(self, config_class: type[Any], sizes: Sizes, given: Mapping[str, Any]) -> None:
        self.config_class = config_class
        self.sizes = sizes
        self.fields = {
            field.name: field
            for field in dataclasses.fields(config_class)
            if not field.name.startswith("_")
        }
        self.defaults = dict(_defaults(self.fields.values())) | dict(given)
        hidden = self.defaults.get("hidden_size")
        self.hidden = hidden if _is_int(hidden) else 0
        self.instance = _instance(config_class, given)
        self.count_name = next((n for n in _LAYER_COUNTS if _is_int(self.defaults.get(n))), None)
        self.count = self.defaults[self.count_name] if self.count_name else 0
        self.per_layer = dict(self._per_layer())
        self.kept = _kept_layers(self.count, list(self.per_layer.values()), sizes.layers)
        stages = [v for n, v in self.defaults.items() if _STAGED.fullmatch(n) and _is_ints(v)]
        self.stages = len(stages[0]) if stages else 0

    def config(self, overrides: Mapping[str, Any]) -> Any:
        arguments = {name: self._shrunk(name, value) for name, value in self.defaults.items()}
        arguments |= {n: [v[i] for i in self.kept] for n, v in self.per_layer.items()}
        arguments |= self._fill() if self.sizes.fill else {}
        parts = dict(self._parts())
        arguments |= overrides
        arguments |= {name: part.config(overrides.get(name, {})) for name, part in parts.items()}
        return self.config_class(**arguments)

    def _per_layer(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Fields with an entry a layer, given or derived from the default number of layers."""
        for name in self.fields:
            value = _read(self.instance, name)
            default = self.defaults.get(name)
            if not isinstance(value, list | tuple) or len(value) != self.count or self.count < 3:
                continue
            if isinstance(default, list | tuple | None) and not _is_indices(value):
                yield name, value

    def _parts(self) -> Iterator[tuple[str, _Shrinker]]:
        """The configurations inside this one."""
        specs = getattr(self.config_class, "sub_configs_defaults", {})
        for name, part in vars(self.instance).items() if self.instance is not None else ():
            if dataclasses.is_dataclass(part) and hasattr(part, "model_type"):
                given = specs[name].init_kwargs if name in specs else {}
                yield name, _Shrinker(type(part), self.sizes, given)

    def _shrunk(self, name: str, value: Any) -> Any:
        if name == self.count_name:
            return len(self.kept)
        if _is_int(value):
            return self._shrunk_int(name, value)
        if _is_ints(value):
            return type(value)(self._shrunk_ints(name, value))
        if isinstance(value, float) and re.fullmatch(r"(width|depth)_(multip.*|coeff.*)", name):
            return min(value, 0.5)
        return value

    def _shrunk_int(self, name: str, value: int) -> int:
        if re.fullmatch(r".*(token_id|token_index|pad_id)", name):
            return _shrunk_token(value)
        if self.stages and _WIDTHS.fullmatch(name):
            return _shrunk_width(value)
        cap = _cap(name)
        if cap is None or (cap == "layers" and value == self.stages):
            return value
        if cap == "few_heads" and value >= self._heads() > 0:
            cap = "heads"
        if cap == "heads":
            return self._shrunk_heads(name, value)
        if cap == "hidden" and value < self.hidden:
            cap = "narrow"
        if cap in {"experts", "per_token"} and value:
            return self._size(cap)
        return min(value, self._size(cap))

    def _size(self, cap: str | int) -> int:
        return int(getattr(self.sizes, cap)) if isinstance(cap, str) else cap

    def _heads(self) -> int:
        names = ("num_attention_heads", "n_head", "n_heads", "num_heads")
        return next((self.defaults[n] for n in names if _is_int(self.defaults.get(n))), 0)

    def _shrunk_heads(self, name: str, value: int) -> int:
        """As many heads as make up the same multiple of the hidden size, where they made one."""
        size = self.sizes
        for dim in (name.replace("num_heads", "head_dim"), name.replace("n_heads", "d_head")):
            head_dim = self.defaults.get(dim)
            if _is_int(head_dim) and value * head_dim == 2 * self.hidden > 0:
                return 2 * size.hidden // min(head_dim, size.head_dim)
        return min(value, size.heads)

    def _shrunk_ints(self, name: str, value: Sequence[int]) -> Sequence[int]:
        size = self.sizes
        if "token_id" in name:
            return [_shrunk_token(v) for v in value]
        if _STAGES.fullmatch(name):
            return [min(v, size.stage_depth) for v in value]
        if _WIDTHS.fullmatch(name):
            return [_shrunk_width(v) for v in value]
        if name in {"image_size", "crop_size"}:
            return [min(v, size.image) for v in value]
        if sum(value) == self.hidden > 0:
            return _with_sum(value, size.hidden)
        if value[0] ** len(value) == self.defaults.get("max_position_embeddings"):
            return [round(size.positions ** (1 / len(value)))] * len(value)
        if self.count and _is_indices(value) and max(value) < self.count:
            return [i for i, layer in enumerate(self.kept) if layer in value]
        return value

    def _fill(self) -> dict[str, Any]:
        filled = {}
        for name, field in self.fields.items():
            cap = _cap(name)
            if cap is None or cap in _UNFILLED or "int" not in str(field.type):
                continue
            if _read(self.instance, name) is None:
                filled[name] = self._size(cap)
        return filled


def _cap(name: str) -> str | int | None:
    return next((cap for pattern, cap in _CAPS if re.fullmatch(pattern, name.lower())), None)


def _defaults(fields: Any) -> Iterator[tuple[str, Any]]:
    for field in fields:
        value = field.default
        if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is not dataclasses.MISSING and value is not None:
            yield field.name, value


def _instance(config_class: type[Any], given: Mapping[str, Any]) -> Any:
    try:
        return config_class(**given)
    except Exception:  # noqa: BLE001 - some defaults do not pass their own validation
        return None


def _read(instance: Any, name: str) -> Any:
    try:
        return getattr(instance, name, None)
    except Exception:  # noqa: BLE001 - a property of a foreign configuration
        return None


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ints(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_int, value))


def _is_indices(value: Sequence[Any]) -> bool:
    return _is_ints(value) and list(value) == sorted(set(value))


def _shrunk_token(value: int) -> int:
    """The id itself, or one near the end of the small vocabulary."""
    return value if value < VOCABULARY else VOCABULARY - 1 - value % 50


def _shrunk_width(value: int) -> int:
    return value // _STAGE_DIVISOR if value >= 16 * _STAGE_DIVISOR else value


def _with_sum(value: Sequence[int], total: int) -> list[int]:
    head = [v * total // sum(value) for v in value[:-1]]
    return [*head, total - sum(head)]


def _kept_layers(count: int, per_layer: Sequence[Sequence[Any]], least: int) -> list[int]:
    """Which layers of the default stay: ``least`` and one of up to four kinds, the last last."""
    kinds: dict[str, list[int]] = {}
    for layer in range(count):
        kinds.setdefault(repr([entries[layer] for entries in per_layer]), []).append(layer)
    if len(kinds) > count // 2:
        return list(range(min(count, least)))
    kept = {layers[0] for layers in kinds.values()}
    last = next((layers for layers in kinds.values() if count - 1 in layers), None)
    if last and last[0] != max(kept):
        kept = kept - {last[0]} | {last[-1]}
    kept = set(sorted(kept)[-4:])
    for rank in range(count):
        for layers in reversed(kinds.values()):
            if len(kept) < least and rank < len(layers):
                kept.add(layers[rank])
    return sorted(kept)
