"""The fixtures: how a model is shared, given back, replaced, and what a run without one says."""

from __future__ import annotations

import pytest

MODEL = "--tb-model=model.py"
LOGGING = "\nwith open('loads.txt', 'a') as log: log.write('x')\n"


def loads(project: pytest.Pytester) -> int:
    """How often the model's code was run."""
    log = project.path / "loads.txt"
    count = len(log.read_text()) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


@pytest.fixture
def logged(healthy: pytest.Pytester) -> pytest.Pytester:
    """The healthy project, whose model notes every time that it is built."""
    model = healthy.path / "model.py"
    text = model.read_text().replace(
        "self.head =", "self.register_buffer('scale', torch.ones(2)); self.head ="
    )
    model.write_text(text + LOGGING)
    return healthy


def test_checks_and_tests_share_one_model_and_one_probe(logged: pytest.Pytester) -> None:
    logged.makepyfile(
        test_own="""
        probes = []
        def test_one(tb_probe): probes.append(tb_probe)
        def test_two(tb_probe, tb_subject, tb_model):
            assert probes[0] is tb_probe and tb_probe.subject is tb_subject
            assert tb_subject.model is tb_model
        """
    )
    logged.runpytest_inprocess(MODEL).assert_outcomes(passed=6, skipped=1, deselected=1)
    assert loads(logged) == 1


def test_every_fixture_has_what_it_says(healthy: pytest.Pytester) -> None:
    (healthy.path / "config.json").write_text('{"vocab_size": 32}')
    healthy.makepyfile(
        test_own="""
        import torch
        def test_one(tb_model, tb_config, tb_tokenizer, tb_subject, tb_probe, tb_device, tb_batch):
            assert tb_model.head.out_features == 32
            assert tb_config["vocab_size"] == tb_config.vocab_size == 32
            assert tb_tokenizer is None
            assert tb_device == torch.device("cpu")
            assert tb_batch["input_ids"].shape == (2, 8)
            assert tb_subject(tb_batch) is not None
        """
    )
    healthy.runpytest_inprocess(MODEL, "test_own.py", "-k", "one").assert_outcomes(
        passed=1, deselected=6
    )


@pytest.mark.parametrize(
    "change",
    [
        "tb_model.head.weight.data.zero_(); tb_model.head.weight.add_(1)",
        "tb_model.train(not tb_model.training)",
        "tb_model.head.register_forward_hook(lambda *a: None)",
        "tb_model.head = torch.nn.Linear(8, 32)",
        "tb_model.embed.weight.requires_grad_(False)",
        "tb_model.scale.add_(1)",
    ],
)
def test_a_test_that_changes_the_model_changes_it_for_itself(
    logged: pytest.Pytester, change: str
) -> None:
    logged.makepyfile(
        test_own=f"""
        import torch
        seen = []
        def state(model):
            head = model.head
            return (head.weight.sum().item(), model.training, len(head._forward_hooks),
                    model.embed.weight.requires_grad, model.scale.sum().item())
        def test_one(tb_model):
            seen.append(state(tb_model))
            with torch.no_grad():
                {change}
        def test_two(tb_model):
            assert state(tb_model) == seen[0]
        def test_three(tb_model):
            assert state(tb_model) == seen[0]
        """
    )
    logged.runpytest_inprocess(MODEL).assert_outcomes(passed=7, skipped=1, deselected=1)
    assert loads(logged) == 2


def test_tests_are_run_for_every_model_in_any_order(logged: pytest.Pytester) -> None:
    (logged.path / "b").mkdir()
    (logged.path / "b" / "model.py").write_text((logged.path / "model.py").read_text())
    logged.makepyfile(test_own="def test_one(tb_model): pass\ndef test_two(tb_config): pass")
    result = logged.runpytest_inprocess("-v", MODEL, "--tb-model=b/model.py")
    result.stdout.fnmatch_lines(
        [
            "test_own.py::test_one?model.py? PASSED*",
            "test_own.py::test_one?b_model.py? PASSED*",
            "test_own.py::test_two?model.py? PASSED*",
            "test_own.py::test_two?b_model.py? PASSED*",
        ]
    )
    assert loads(logged) == 2


def test_a_model_is_let_go_after_its_last_test(healthy: pytest.Pytester) -> None:
    (healthy.path / "other.py").write_text((healthy.path / "model.py").read_text())
    conftest = healthy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import gc, weakref, pytest
gc.disable()  # Python does not know how large a model is that waits to be found
alive = []
@check(tier=1)
def passes(probe):
    probe.draws.batch("plain")
@pytest.fixture
def tb_model(tb_model):
    if not any(ref() is tb_model for ref in alive):
        alive.append(weakref.ref(tb_model))
    return tb_model
def pytest_sessionfinish():
    gc.enable()
    print("alive", [ref() is not None for ref in alive])
@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid):
    print("then", len(alive), sum(ref() is not None for ref in alive))
"""
    )
    result = healthy.runpytest_inprocess(MODEL, "--tb-model=other.py", "-s", "-m", "tier1")
    assert result.ret == 0
    assert "then 2 2" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*then 2 1*", "*alive ?False, False?"])


def test_a_run_without_a_model_names_the_ways_to_give_one(healthy: pytest.Pytester) -> None:
    healthy.makepyfile(
        test_own="\n".join(
            f"def test_{name}({name}): pass"
            for name in (
                "tb_model",
                "tb_config",
                "tb_tokenizer",
                "tb_subject",
                "tb_probe",
                "tb_batch",
            )
        )
    )
    result = healthy.runpytest_inprocess()
    result.assert_outcomes(errors=6)
    result.stdout.fnmatch_lines(
        ["*--tb-model=SPEC*ini key tb_model*pytest_tb_models*fixture tb_model*"]
    )


OVERRIDE = """
import pytest, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(16, 4)
        self.head = torch.nn.Linear(4, 16)
    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
net = Net()
@pytest.fixture
def tb_model():
    return net
"""


def test_a_conftest_can_give_the_model(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text() + OVERRIDE)
    healthy.makepyfile(
        test_own="""
        probes = []
        def test_one(tb_model, tb_probe, tb_batch, tb_config):
            probes.append(tb_probe)
            assert tb_probe.subject.model is tb_model
            assert tb_model.head.out_features == 16
        def test_two(tb_probe):
            assert tb_probe is probes[0]
        """
    )
    healthy.runpytest_inprocess().assert_outcomes(passed=2)


def test_a_conftest_can_replace_the_model_of_the_checks(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text() + OVERRIDE)
    result = healthy.runpytest_inprocess(MODEL)
    result.assert_outcomes(passed=4, skipped=1, deselected=1)
    result.stdout.fnmatch_lines(["model.py: *144 parameters*weights: as given"])


def test_a_conftest_fixture_that_fails_or_skips_is_reported(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    text = conftest.read_text()
    for word, outcome in (("fail", {"failed": 5}), ("skip", {"skipped": 5})):
        fixture = f"import pytest\n@pytest.fixture\ndef tb_model(): pytest.{word}('not today')\n"
        conftest.write_text(f"{text}\n{fixture}")
        result = healthy.runpytest_inprocess(MODEL)
        result.assert_outcomes(**outcome, deselected=1)
        result.stdout.fnmatch_lines(["*not today*"])


def test_a_test_of_a_model_that_does_not_load_is_an_error_at_setup(
    healthy: pytest.Pytester,
) -> None:
    healthy.makepyfile(model="raise RuntimeError('no')", test_own="def test_one(tb_probe): pass")
    result = healthy.runpytest_inprocess(MODEL)
    result.assert_outcomes(errors=1, failed=5, deselected=1)
    result.stdout.fnmatch_lines(["blocked by load: model.py does not load", "*RuntimeError: no"])


def test_setup_show_lists_the_fixtures(healthy: pytest.Pytester) -> None:
    result = healthy.runpytest_inprocess(MODEL, "--setup-show", "model.py::tier1::cased[good]")
    result.stdout.fnmatch_lines(["*SETUP    F _tb_case*", "*SETUP    F tb_probe*"])


def test_the_hook_gives_specs_and_factories(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + OVERRIDE.partition("@pytest.fixture")[0]
        + """
def pytest_tb_models(config):
    yield "model.py"
    yield "mine", Net
"""
    )
    result = healthy.runpytest_inprocess("-v", "-m", "tier1")
    result.assert_outcomes(passed=8, deselected=4)
    result.stdout.fnmatch_lines(["model.py::tier1::load PASSED*", "mine::tier1::load PASSED*"])
    healthy.runpytest_inprocess("mine::tier1::load").assert_outcomes(passed=1)
    healthy.runpytest_inprocess(MODEL, "-m", "tier1").assert_outcomes(passed=4, deselected=2)


@pytest.mark.parametrize("given", ["'mine', 3", "3", "None, None", "'nosuch.py'"])
def test_what_the_hook_may_not_give(healthy: pytest.Pytester, given: str) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text() + f"\ndef pytest_tb_models(config):\n    return [({given})]\n"
    )
    assert healthy.runpytest_inprocess().ret == pytest.ExitCode.USAGE_ERROR


def test_a_hook_that_raises_is_a_usage_error(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\ndef pytest_tb_models(config): 1 / 0\n")
    result = healthy.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pytest_tb_models raised ZeroDivisionError*"])


def test_a_buffer_that_a_forward_changes_costs_no_reload(logged: pytest.Pytester) -> None:
    model = logged.path / "model.py"
    model.write_text(model.read_text().replace("return self", "self.scale.add_(1); return self"))
    logged.makepyfile(
        test_own="""
        from pytest_transformer_validate.subject.guard import guard
        def test_one(tb_subject, tb_batch):
            with guard(tb_subject.model):
                tb_subject(tb_batch)
        def test_two(tb_model): assert tb_model.scale.sum() == 2
        """
    )
    logged.runpytest_inprocess("--tb-model=model.py").assert_outcomes(
        passed=6, skipped=1, deselected=1
    )
    assert loads(logged) == 1


@pytest.mark.parametrize(
    "write",
    [
        "optimizer = torch.optim.AdamW(tb_model.parameters(), lr=1e-4, fused=True)\n"
        "    tb_model(torch.arange(8)[None]).sum().backward()\n"
        "    optimizer.step()\n"
        "    tb_model.zero_grad()",
        "tb_model.head.bias.data.mul_(0.5)",
    ],
    ids=["fused optimizer", "data"],
)
def test_weights_written_without_a_trace_are_loaded_anew(
    logged: pytest.Pytester, write: str
) -> None:
    """No version counter moves."""
    logged.makepyfile(
        test_own=f"""
import torch
def test_writes(tb_model):
    before = [p._version for p in tb_model.parameters()]
    {write}
    assert [p._version for p in tb_model.parameters()] == before
def test_as_loaded(tb_model):
    torch.manual_seed(0)
    assert torch.equal(tb_model.head.bias, type(tb_model)().head.bias)
"""
    )
    logged.runpytest_inprocess(MODEL, "test_own.py", "-k", "writes or as_loaded").assert_outcomes(
        passed=2, deselected=6
    )
    assert loads(logged) == 2


def test_another_dtype_costs_no_reload(logged: pytest.Pytester) -> None:
    logged.makepyfile(test_own="def test_own(tb_subject): pass\ndef test_two(tb_probe): pass")
    args = (MODEL, "--tb-dtype=bfloat16", "-m", "tier1 or not tier1", "-k", "own or two or sound")
    result = logged.runpytest_inprocess(*args)
    assert result.parseoutcomes()["passed"] == 3
    assert loads(logged) == 1
