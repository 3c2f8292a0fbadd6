"""Models that do not load, or just do, by row of the table of bad input."""

from __future__ import annotations

from dataclasses import dataclass, field

HEAD = "import torch\nfrom torch import nn\n"
NET = """
class Net(nn.Module):
    def __init__(self, vocab_size=16, width=4, **rest):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
"""
GOOD = HEAD + NET
HEADS = """
class Net(nn.Module):
    def __init__(self, vocab_size=8, hidden=6, heads=1, num_layers=1):
        super().__init__()
        assert hidden % heads == 0, f"hidden {hidden} is no multiple of heads {heads}"
        self.embed = nn.Embedding(vocab_size, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(num_layers))
        self.head = nn.Linear(hidden, vocab_size)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
"""
NEEDY = "class Net(nn.Module):\n    def __init__(self, depth, width, heads): super().__init__()\n"
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 106)
)


@dataclass(frozen=True)
class Case:
    """One bad (or odd) input: its files, and what the check ``load`` says of it.

    ``words`` are parts of the message, in order; without any the model passes.
    """

    row: int
    name: str
    files: dict[str, str | bytes]
    words: tuple[str, ...] = ()
    spec: str = "model.py"
    warned: tuple[str, ...] = field(default=())

    @property
    def id(self) -> str:
        return f"row{self.row:02}-{self.name}"


def model(row: int, name: str, text: str | bytes, *words: str, **more: object) -> Case:
    return Case(row, name, {"model.py": text}, words, **more)  # type: ignore[arg-type]


def config(row: int, name: str, text: str | bytes, *words: str, code: str = GOOD) -> Case:
    return Case(row, name, {"model.py": code, "config.json": text}, words, spec="")


CASES = [
    model(32, "empty", "", "model.py is empty", "torch.nn.Module"),
    model(32, "functions", "def helper(): pass\nX = 3", "names found: helper, X", "build_model"),
    model(32, "no-module", "class Net: pass", "defines no torch.nn.Module", "called Model"),
    model(33, "two", HEAD + NET + NET.replace("Net", "Other"), "Net, Other", "::Net"),
    model(34, "syntax", "import torch\nx = (", "model.py:2:5: not valid Python"),
    model(34, "tabs", "if 1:\n        x = 1\n\ty = 2\n", "model.py:3", "tabs"),
    model(34, "python2", 'print "hello"\n', "model.py:1:1", "Python 2"),
    model(34, "conflict", "<<<<<<< HEAD\nx = 1\n=======\n", "model.py:1", "git conflict marks"),
    model(34, "html", "<!DOCTYPE html>\n<html></html>", "looks like HTML"),
    model(34, "notebook", '{"cells": [], "metadata": {}}', "notebook"),
    model(34, "utf16", "import torch\n".encode("utf-16"), "looks like UTF-16"),
    model(34, "nul", b"x = 1\n\0", "model.py:2:1: a NUL byte"),
    model(35, "bom", b"\xef\xbb\xbf" + GOOD.encode()),
    model(35, "crlf", GOOD.replace("\n", "\r\n").encode()),
    model(35, "homoglyph", GOOD.replace("self.head", "self.h\u0435ad")),
    model(35, "bidi", f"# \u202e\n{GOOD}", warned=("model.py:1: a character that reorders",)),
    model(36, "missing", "import flash_attn_x", "'flash_attn_x'", "nothing is installed auto"),
    model(36, "relative", "from .layers import Net", "model.py:1: a relative import"),
    model(36, "sibling-missing", "import layers_x", "'layers_x'"),
    Case(
        36,
        "sibling",
        {"model.py": HEAD + "from layers_y import W" + NET, "layers_y.py": "W = 1"},
    ),
    model(37, "raises", "import torch\n\n1 / 0", "model.py", "line 3", "ZeroDivisionError"),
    model(37, "exit-0", "import sys\nsys.exit(0)", "SystemExit: 0"),
    model(37, "exit-3", "import sys\nsys.exit(3)", "SystemExit: 3"),
    model(37, "interrupt", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    model(37, "constructor", GOOD.replace("super().__init__()", "1 / 0"), "ZeroDivisionError"),
    Case(
        48,
        "missing",
        {"model.py": HEAD + NEEDY, "config.json": '{"width": 3}'},
        ("requires 2 arguments", "depth, heads", "keys there: width"),
    ),
    model(48, "no-config", HEAD + NEEDY, "3 arguments", "depth, width, heads", "no config.json"),
    Case(
        48,
        "unknown",
        {
            "model.py": GOOD.replace(", **rest", ""),
            "config.json": '{"vocab_size": 8, "widht": 3, "max_seq_len": 16, "heads": 3}',
        },
        warned=(
            "model.py, class Net takes no 'widht' (did you mean width? The default is in force), "
            "'heads'",
        ),
    ),
    Case(51, "missing", {"model.py": GOOD}, ("has no config.json; found: model.py",), spec=""),
    config(51, "empty", "", "has an empty config.json"),
    config(51, "null", "null", "config.json holds null", "JSON object"),
    config(51, "list", "[]", "holds a list"),
    config(51, "string", '"x"', "holds a string"),
    config(52, "comma", '{"a": 1,\n}', "config.json:", "comma before }"),
    config(52, "comment", '{\n  // no\n  "a": 1}', "config.json:2:3", "no comments"),
    config(52, "quotes", "{'a': 1}", "config.json:1:2", "double quotes"),
    config(52, "latin1", b'{"a": "\xe9"}', "config.json:1:8: not UTF-8"),
    config(52, "utf16", '{"a": 1}'.encode("utf-16"), "looks like UTF-16"),
    config(52, "surrogate", '{"a": "\\ud800"}', "key a", "surrogate"),
    config(52, "bom", b'\xef\xbb\xbf{"width": 8}'),
    config(53, "depth", "[" * 100_000, "nested more than 100"),
    config(53, "digits", '{"a": %s}' % ("9" * 5000), "key a: a number of 5000 digits"),
    config(53, "large", '{"a": "%s"}' % ("x" * 5_000_001), "at most 5000000"),
    config(54, "nan", '{"a": {"b": NaN}}', "key a.b", "finite"),
    config(54, "infinity", '{"a": -Infinity}', "key a"),
    config(54, "huge", '{"a": 1e999}', "key a: 1e999 is too large"),
    config(54, "twice", '{"a": 1, "a": 2}', "key a: the key is there twice"),
    *(
        config(55, name, f'{{"vocab_size": {value}}}', "key vocab_size", "to 2147483647", value)
        for name, value in (
            ("zero", "0"),
            ("negative", "-1"),
            ("fraction", "1.5"),
            ("true", "true"),
        )
    ),
    config(
        55,
        "1e12",
        '{"vocab_size": 1000000000000}',
        "key vocab_size",
        "to 2147483647, given 1000000000000, of which one float32 each takes 3,725 GiB",
    ),
    config(
        55,
        "memory",
        '{"vocab_size": 2000000000, "width": 4096}',
        "parameters and buffers take 61,0",
        "of memory are free",
        "the largest numbers in row55-memory/config.json: vocab_size 2000000000, width 4096",
    ),
    config(
        55,
        "unused",
        '{"vocab_size": 2000000000}',
        "index out of range",
        code=GOOD.replace("vocab_size=16, width=4, **rest", "")
        .replace("vocab_size", "16")
        .replace("width", "4"),
    ),
    config(55, "text", '{"vocab_size": "abc"}', "key vocab_size", "'abc'"),
    config(56, "heads", '{"hidden": 6, "heads": 4}', "no multiple of heads 4", code=HEAD + HEADS),
    config(56, "no-layers", '{"num_layers": 0}', code=HEAD + HEADS),
    config(57, "no-consent", '{"trust_remote_code": true, "auto_map": {"AutoModel": "o/r--m.X"}}'),
    Case(
        57,
        "code-elsewhere",
        {
            "config.json": '{"model_type": "gpt2", "architectures": ["Net"], "auto_map": '
            '{"AutoModelForCausalLM": "other/repo--m.Net"}}'
        },
        ("key auto_map: the code is in another repository, other/repo",),
        spec="",
    ),
    config(58, "alias-bomb", BOMB, "config.json:1:1: not valid JSON"),
    config(58, "object", "!!python/object/apply:os.system [exit]", "not valid JSON"),
    Case(65, "module", {}, ("no module 'nosuch_x'",), spec="nosuch_x.nets:Net"),
    Case(65, "submodule", {}, ("has no module 'ntes'", "nets"), spec="PKG.ntes:Net"),
    Case(65, "attribute", {}, ("has no 'Nte'", "did you mean Net"), spec="PKG.nets:Nte"),
    Case(65, "needs", {}, ("requires", "depth"), spec="PKG.nets:needs"),
    Case(65, "class", {}, ("gave the class Net", "return the"), spec="PKG.nets:gives_class"),
    Case(65, "none", {}, ("gave None",), spec="PKG.nets:gives_none"),
    Case(65, "object", {}, ("an object of type dict",), spec="PKG.nets:TABLE"),
    Case(65, "good", {}, spec="PKG.nets:Net"),
]
PACKAGE = f"""{GOOD}
def needs(depth, width): pass
def gives_class(): return Net
def gives_none(): return None
TABLE = {{}}
"""
