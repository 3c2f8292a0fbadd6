"""A real kernel, in a folder of its own, shared by all tests of a file."""

from __future__ import annotations

import ast
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from tests import gisthost
from tests.real import needed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = gisthost.MODEL.replace("class Model", "class Net")
# Its logits see what comes later.
LOOKING = MODEL.replace(
    "self.embed(input_ids))", "self.embed(input_ids).flip(1).cumsum(1).flip(1))"
)


@dataclasses.dataclass
class Said:
    """What a cell printed and showed."""

    stdout: str = ""
    stderr: str = ""
    html: str = ""
    value: str = ""
    error: str = ""

    def take(self, message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            name = content["name"]
            setattr(self, name, getattr(self, name) + content["text"])
        elif message["msg_type"] in {"execute_result", "display_data"}:
            self.html += content["data"].get("text/html", "")
            self.value += content["data"].get("text/plain", "")
        elif message["msg_type"] == "error":
            self.error = "\n".join(content["traceback"])


class Kernel:
    """Runs cells, as a notebook does."""

    def __init__(self, client: Any, folder: Path) -> None:
        self.client = client
        self.folder = folder

    def __call__(self, cell: str) -> Said:
        """What became of a cell; one that raises is in ``error``."""
        said = Said()
        self.client.execute_interactive(cell, timeout=300, output_hook=said.take)
        return said

    def value(self, expression: str) -> Any:
        """What an expression of plain Python values is."""
        said = self(expression)
        assert not said.error, said.error
        return ast.literal_eval(said.value)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel in which the extension is loaded and ``net`` is a model."""
    needed("ipykernel")
    start = needed("jupyter_client.manager").start_new_kernel
    home = tmp_path_factory.mktemp("home")
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "GIST_ID", "GITHUB_TOKEN", "GH_TOKEN", "FORCE_COLOR", "PYTEST_ADDOPTS"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")  # two kernels on two cores are no race
        manager, client = start(cwd=str(folder))
    made = Kernel(client, folder)
    try:
        said = made(f"{MODEL}\nnet = Net()")
        assert not said.error, said.error
        yield made
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
