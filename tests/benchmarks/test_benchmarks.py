import json
import math

import jax
import pytest

from benchmarks import measure, optimizers


def test_functions_take_turns_and_warm_up_uncounted():
    calls = []
    seconds = measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert seconds.keys() == {"a", "b"}


def test_results_are_stored_with_a_machine_that_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    stored = json.loads(measure.save("name", {"ratio": 1.5}).read_text())
    assert stored["results"] == {"ratio": 1.5}
    assert stored["machine"].keys() == {"system", "processor", "cores", "python", "versions", "devices"}


@pytest.mark.parametrize(("model", "size"), [("ResNet-50", 25_557_032), ("transformer", 110_416_896)])
def test_the_models_have_the_parameters_of_their_names(model, size):
    shapes = jax.tree.leaves(optimizers.MODELS[model], is_leaf=lambda node: isinstance(node, tuple))
    assert sum(map(math.prod, shapes)) == size


def test_all_steps_are_compared_on_one_model(capsys):
    result = optimizers.compare("small", {"dense": {"kernel": (8, 4), "bias": (4,)}}, rounds=1)
    assert result["ratios"].keys() == {"adamp", "sgdp"}
    assert result["seconds"].keys() >= {"adamw", "adamp", "sgd", "sgdp"}
    assert "x adamw (goal" in capsys.readouterr().out
