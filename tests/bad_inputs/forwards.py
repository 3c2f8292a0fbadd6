"""Models that load and are odd when they run, by row of the table of bad input."""

from __future__ import annotations

from tests.bad_inputs.loads import HEAD, Case

BODY = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 4)
        self.head = nn.Linear(4, 16)
        {init}

    def forward(self, {takes}):
        logits = self.head(self.embed({ids}))
        {body}

class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({{"default": nn.Linear(4, 2, bias=False)}})
        self.lora_B = nn.ModuleDict({{"default": nn.Linear(2, 16, bias=False)}})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

class Whole(nn.Module):
    def __init__(self, base):
        super().__init__()
        scale = base.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (base.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale.to(x.dtype))

class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

def build_model():
    model = Net()
    {build}
"""


def net(
    row: int,
    name: str,
    *words: str,
    body: str = "return logits",
    init: str = "",
    build: str = "return model",
    takes: str = "input_ids",
    ids: str = "input_ids",
    config: str = '{"vocab_size": 16, "max_seq_len": 16, "task": "causal_lm"}',
) -> Case:
    """A model that fails somewhere, saying ``words``; without words it passes or skips."""
    text = HEAD + BODY.format(init=init, takes=takes, ids=ids, body=body, build=build)
    return Case(row, name, {"model.py": text, "config.json": config}, words)


ROWS = "logits must have one row for each text"

CASES = [
    net(46, "other-name", takes="x", ids="x"),
    net(46, "two-inputs", "mystery", takes="input_ids, mystery", body="return logits + mystery.q"),
    net(46, "none", "None", body="return None"),
    net(46, "text", "str", body="return 'logits'"),
    net(46, "list", body="return [logits]"),
    net(46, "generator", "generator", body="return (part for part in logits)"),
    net(46, "dictionary", "dict", body="return {'words': 'none'}"),
    net(46, "detached", "gradient", body="return logits.detach()"),
    net(46, "integers", "int64", body="return logits.long()"),
    net(46, "complex", "complex64", body="return logits.to(torch.complex64)"),
    net(46, "nan", "NaN", body="return logits / 0 * 0"),
    net(46, "inf", "infinity", body="return logits + float('inf')"),
    net(46, "batch-last", ROWS, body="return logits.transpose(0, 1)"),
    net(46, "ragged", ROWS, body="return [row[: n + 1] for n, row in enumerate(logits)]"),
    net(
        47,
        "no-parameters",
        "has none",
        init="self.embed = self.head = nn.Identity()",
        body="return nn.functional.one_hot(input_ids, 16).float()",
    ),
    net(
        47,
        "frozen",
        "no parameter asks for a gradient",
        build="return model.requires_grad_(False)",
    ),
    net(47, "meta", "meta", build="return model.to('meta')"),
    net(
        47,
        "lazy",
        "parameters without a size: head.weight, head.bias",
        init="self.head = nn.LazyLinear(16)",
    ),
    net(
        47,
        "tied",
        init="self.head = nn.Linear(4, 16, bias=False); self.head.weight = self.embed.weight",
    ),
    net(47, "not-contiguous", init="self.head.weight = nn.Parameter(torch.randn(4, 16).t())"),
    net(
        47,
        "quantised",
        init="self.head = Whole(self.head)",
    ),
    net(
        47,
        "quantised-by-torch",
        build="return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})",
    ),
    net(47, "nested", "nested tensor of", body="return torch.nested.nested_tensor(list(logits))"),
    net(49, "changes-its-input", "input", body="input_ids.add_(1); return logits"),
    net(
        49,
        "changes-a-buffer",
        "buffer",
        init="self.register_buffer('seen', torch.zeros(1))",
        body="self.seen += 1; return logits + self.seen",
    ),
    net(49, "draws", "eval", body="return logits + torch.rand_like(logits)"),
    net(49, "dropout", init="self.drop = nn.Dropout(0.1)", body="return self.drop(logits)"),
    net(50, "compiled", build="return torch.compile(model, backend='eager')"),
    net(
        50,
        "compiled-inside",
        build="model.head = torch.compile(model.head, backend='eager'); return model",
    ),
    net(
        50,
        "exported",
        build="return torch.export.export(model, (torch.zeros(2, 4).long(),)).module()",
    ),
    net(
        50,
        "distributed",
        build="import torch.distributed as d; "
        "d.init_process_group('gloo', store=d.HashStore(), rank=0, world_size=1); "
        "return nn.parallel.DistributedDataParallel(model)",
    ),
    net(
        50,
        "wrapped-for-adapters",
        build="model.requires_grad_(False); model.head = Adapted(model.head); "
        "return Wrapper(Wrapper(model))",
    ),
    net(50, "scripted", build="return torch.jit.trace(model, torch.zeros(2, 4).long())"),
    net(50, "parallel", build="return nn.DataParallel(model)"),
    net(
        50,
        "adapter",
        init="self.lora_a = nn.Parameter(torch.zeros(4, 2)); "
        "self.lora_b = nn.Parameter(torch.randn(2, 16)); self.head.requires_grad_(False)",
        body="return logits + self.embed(input_ids) @ self.lora_a @ self.lora_b",
    ),
]
