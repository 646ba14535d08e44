"""Experiments through their command lines, small; what they leave; and that an interruption changes nothing."""

import ast
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import experiments.__main__ as listing
from experiments import harness, linear_probes, long_tail, scale_invariance, token_memory
from experiments.harness import figures, folder, language
from reweight import optim
from reweight.train import on_device

ROOT = pathlib.Path(__file__).parents[2]

# Experiments with tests of their own in place of these.
APART = {"preference"}
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in listing.questions() if name not in APART}
# Those that solve or evaluate where others train: a killed run has nothing to go on with and is run again.
UNTRAINED = {"linear_probes"}
TIMES = "milliseconds"  # what no two runs have the same


def has(name, *fields):
    known = {field.name for field in dataclasses.fields(MODULES[name].Config)}
    return known.issuperset(fields)


def few(name):
    """The methods of the smallest run, two of them."""
    return list(MODULES[name].Config.smoke().chosen)


def small(name):
    """The smallest run, with as few steps as can be interrupted."""
    words = {"steps": ["--steps", "8"], "batch_size": ["--batch-size", "16"]}
    return ["--smoke", *(word for field, said in words.items() if has(name, field) for word in said)]


def command(name, *words):
    module = MODULES[name]
    return harness.main(name, config=module.Config, run=module.run, draw=module.draw, argv=list(words))


def only_run(folder, name):
    (run,) = (folder / name).iterdir()
    return run


@pytest.fixture(scope="module", params=list(MODULES))
def finished(request, tmp_path_factory):
    """An experiment run with two methods: its name, its results and its folder."""
    out = tmp_path_factory.mktemp("runs")
    results = command(request.param, *small(request.param), "--out", str(out), "--store", str(out / "kept"))
    return request.param, results, only_run(out, request.param)


def test_a_run_leaves_config_results_and_figure(finished):
    name, _, run = finished
    config = json.loads((run / "config.json").read_text())
    assert config["seeds"] == 2
    stored = json.loads((run / "results.json").read_text())
    assert stored["question"] == listing.questions()[name]
    assert list(stored["methods"]) == few(name)
    assert len(np.load(run / "curves.npz").files) > 0
    assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_trained_leaves_metrics_and_checkpoints(finished):
    name, _, run = finished
    trained = {path.stem for path in run.glob("metrics/*.jsonl")}
    assert bool(trained) == (name not in UNTRAINED)
    for method in trained:
        assert list((run / "tensorboard" / method).glob("events*"))
        lines = [json.loads(line) for line in (run / "metrics" / f"{method}.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        assert steps == sorted(set(steps))
        assert list((run / "checkpoints" / method).glob(str(steps[-1])))
        assert np.shape(lines[-1]["train/loss"]) == (2,)


def test_the_results_are_kept_where_asked(finished):
    name, _, run = finished
    kept = run.parent.parent / "kept"
    assert (kept / f"{name}.json").read_text() == (run / "results.json").read_text()
    assert (kept / f"{name}.png").stat().st_size < 200_000


def test_every_value_has_one_finite_number_a_seed(finished):
    _, results, _ = finished
    assert results.values
    for method, values in results.values.items():
        for metric, numbers in values.items():
            seeds = 3 if metric.startswith("sphere") else 2
            assert np.shape(numbers) == (seeds,), (method, metric)
            assert np.all(np.isfinite(numbers)), (method, metric)


class Killed(BaseException):
    pass


def reproducible(metrics_by_method):
    return {
        method: {name: numbers for name, numbers in metrics.items() if name != TIMES}
        for method, metrics in metrics_by_method.items()
    }


def stored_and_reproducible(run):
    stored = json.loads((run / "results.json").read_text())
    claims = [claim for claim in stored["claims"] if claim["metric"] != TIMES]
    return stored | {"methods": reproducible(stored["methods"]), "claims": claims}


def test_an_interrupted_run_ends_with_the_same_numbers(finished, tmp_path, monkeypatch):
    name, whole, run = finished
    if name in UNTRAINED:
        again = command(name, *small(name), "--out", str(tmp_path))
        jax.tree.map(np.testing.assert_array_equal, reproducible(again.values), reproducible(whole.values))
        return
    chunk, done = on_device._chunk, []

    def killed_in_the_second_chunk(*args):
        if done:
            raise Killed
        done.append(True)
        return chunk(*args)

    with monkeypatch.context() as patched:
        patched.setattr(on_device, "_chunk", killed_in_the_second_chunk)
        with pytest.raises(Killed):
            command(name, *small(name), "--out", str(tmp_path))
    resumed = command(name, "--out", str(tmp_path), "--resume", "last")
    jax.tree.map(np.testing.assert_array_equal, reproducible(resumed.values), reproducible(whole.values))
    again = only_run(tmp_path, name)
    assert stored_and_reproducible(again) == stored_and_reproducible(run)
    files = [path.relative_to(run) for path in run.glob("metrics/*.jsonl")]
    assert files
    for file in files:
        assert (again / file).read_text() == (run / file).read_text()


def test_a_run_on_a_mesh_goes_through_the_loader_and_can_be_resumed(tmp_path):
    words = [
        *small("long_tail"),
        "--seeds",
        "1",
        "--methods",
        "logit_adjustment",
        "--out",
        str(tmp_path),
        "--mesh",
        "data=8",
    ]
    results = command("long_tail", *words)
    assert 0 <= results.values["logit_adjustment"]["balanced_accuracy"][0] <= 1
    resumed = command("long_tail", "--out", str(tmp_path), "--resume", "last")
    jax.tree.map(np.testing.assert_array_equal, dict(resumed.values), dict(results.values))


def test_the_table_has_intervals_and_a_verdict_for_every_claim(finished, capsys):
    name, results, run = finished
    command(name, "--out", str(run.parent.parent), "--resume", str(run))
    printed = capsys.readouterr().out
    assert results.question in printed
    assert "mean ± 95% interval over 2 seeds" in printed
    assert all(method in printed for method in few(name))
    assert printed.count("shown") == len(results.verdicts)
    assert str(run) in printed


@pytest.mark.parametrize("name", list(MODULES))
def test_help_says_the_question_the_methods_and_the_options(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command(name, "--help")
    said = capsys.readouterr().out
    assert listing.questions()[name].split(",")[0] in said
    assert all(method in said for method in few(name))
    for option in ("--smoke", "--seeds", "--first-seed", "--methods", "--mesh", "--resume", "--store"):
        assert option in said
    of_classifiers = issubclass(MODULES[name].Config, harness.ClassifierConfig)
    assert ("--data " in said) == ("--model " in said) == of_classifiers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "cross_entropy", "magic"], "`methods` is 'magic'; allowed: one of 'cross_entropy'"),
        (["--model", "vit"], "`model` is 'vit'; allowed: one of 'mlp'"),
        (["--data", "mnist"], "`name` is 'mnist'; allowed: one of digits"),
        (["--seeds", "0"], "`seeds` is 0"),
        (["--steps", "0"], "`steps` is 0"),
        (["--batch-size", "-4"], "`batch_size` is -4"),
        (["--learning-rate", "0"], "`learning_rate` is 0"),
        (["--ratio", "0.5"], "`ratio` is 0.5"),
        (["--resume", "last"], "`resume` is 'last'"),
        (["--resume", "nowhere"], "`resume` is 'nowhere'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("long_tail", *words, "--out", str(tmp_path))
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_every_training_is_told_of_the_mesh():
    told = {}
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "train_seeds":
                told[path.stem, node.lineno] = any(keyword.arg == "mesh" for keyword in node.keywords)
    assert told
    assert all(told.values()), told


@pytest.mark.parametrize("name", sorted(UNTRAINED))
def test_what_trains_nothing_refuses_a_mesh(name):
    with pytest.raises(ValueError, match="`mesh` is 'data=2'; allowed: none"):
        MODULES[name].Config(mesh="data=2")


def test_unknown_methods_are_refused_in_code_too():
    with pytest.raises(ValueError, match="`methods` is 'magic'; allowed: one of 'gd', 'sgd'"):
        scale_invariance.Config(methods=("magic",))


def test_a_resumed_run_keeps_its_config(finished, capsys):
    name, _, run = finished
    with pytest.raises(SystemExit, match="2"):
        command(name, "--resume", str(run), "--seeds", "3")
    assert "`seeds` is 3; allowed: 2, as in the run to resume" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("damage", ["{", '{"seeds": 3}', "[]"])
def test_a_damaged_config_is_refused(damage, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(damage)
    with pytest.raises(ValueError, match="not a config"):
        folder.read_config(run, long_tail.Config)


def test_the_package_lists_its_questions():
    command = [sys.executable, "-m", "experiments"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    said = " ".join(said.replace("│", " ").split())  # questions that are wrapped in their column
    for name, module in MODULES.items():
        assert name in said
        assert module.__doc__.splitlines()[0].split(",")[0] in said


@pytest.mark.parametrize("name", list(MODULES))
def test_the_released_results_are_those_of_the_module_as_it_is(name):
    stored = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    module = MODULES[name]
    assert stored["config"] == json.loads(json.dumps(dataclasses.asdict(module.Config())))
    assert list(stored["methods"]) == list(module.METHODS)
    claims = [harness.Claim(*(claim[field] for field in harness.Claim._fields)) for claim in stored["claims"]]
    assert claims == list(module.CLAIMS)
    values = {
        method: {metric: np.array(entry["values"]) for metric, entry in metrics.items()}
        for method, metrics in stored["methods"].items()
    }
    for claim, entry in zip(module.CLAIMS, stored["claims"], strict=True):
        verdict = harness.judge(claim, values)
        assert verdict.seeds >= 5
        assert verdict.as_dict() == entry
    assert (ROOT / "docs" / "results" / f"{name}.png").stat().st_size < 200_000


def test_scores_of_recalls():
    counts = np.array([10.0, 100.0, 1.0])  # the third class is the tail, the second the head
    scores = long_tail._scores(np.array([[0.5, 1.0, 0.0], [1.0, 1.0, 1.0]]), counts)
    np.testing.assert_allclose(scores["balanced_accuracy"], [0.5, 1])
    np.testing.assert_allclose(scores["worst_class_accuracy"], [0, 1])
    np.testing.assert_allclose(scores["tail_accuracy"], [0, 1])
    np.testing.assert_allclose(scores["head_accuracy"], [1, 1])
    np.testing.assert_allclose(scores["accuracy"], [105 / 111, 1])


def test_steps_until_the_angle_stays_small():
    angles = np.array([[0.5, 0.01, 0.2, 0.01], [0.01, 0.01, 0.01, 0.01], [0.5, 0.5, 0.5, 0.5], [0.5, 0.01, 0.0, 0.0]])
    np.testing.assert_array_equal(scale_invariance._steps_until_near(angles), [3, 0, 4, 1])


def test_on_the_sphere_a_projected_step_grows_the_norm_by_pythagoras_alone():
    key, rate = jax.random.key(1), 0.3
    plain = scale_invariance.sphere(key, optax.sgd(rate), steps=30)
    # The gradient of -cos is sin(angle) / norm, at a right angle to the weights.
    norms = np.asarray(plain.norm, np.float64)
    grown = norms[:-1] ** 2 + (rate * np.sin(np.asarray(plain.angle[:-1], np.float64)) / norms[:-1]) ** 2
    np.testing.assert_allclose(norms[1:] ** 2, grown, rtol=1e-5)
    momentum = scale_invariance.sphere(key, optax.sgd(rate, momentum=0.9), steps=30)
    projected = scale_invariance.sphere(key, optim.sgdp(rate, momentum=0.9, project_buffer=False), steps=30)
    assert plain.norm[-1] < projected.norm[-1] < momentum.norm[-1]


def test_every_way_to_the_log_probs_gives_those_of_the_logits():
    hidden, kernel = jax.random.normal(jax.random.key(0), (14, 8)), jax.random.normal(jax.random.key(1), (40, 8))
    targets = jax.random.randint(jax.random.key(2), (14,), 0, 40)
    expected = np.asarray(jax.nn.log_softmax(hidden @ kernel.T))[np.arange(14), np.asarray(targets)]
    for name, method in token_memory.METHODS.items():
        tolerance = 0.02 if name == "bfloat16" else 1e-5
        np.testing.assert_allclose(method.log_probs(hidden, kernel, targets, 16), expected, rtol=tolerance)


def test_the_curve_of_token_statistics_is_that_of_logits(finished):
    name, results, _ = finished
    if name == "token_memory":
        assert results.values["logits"]["curve_difference"].max() == 0
        assert results.values["statistics"]["curve_difference"].max() < 1e-5


def test_the_divergence_of_a_uniform_language_model_from_the_grammar():
    task = token_memory.TASK
    config = language.decoder_for(task, vocab_size=64, **token_memory.SHAPE)
    # Without parameters all logits are 0: ln 64 a token, less what the grammar itself takes.
    params = jax.tree.map(lambda x: np.zeros((1, *x.shape), x.dtype), language._functions(config).params)
    batch, at = task.sample(jax.random.key(0), 2000), task.prompt_length
    known = task.scores(batch.tokens[:, :at], batch.tokens[:, at:], batch.response_mask[:, at:]).log_prob
    expected = np.mean(np.sum(batch.response_mask, axis=1) * np.log(64) + known)
    np.testing.assert_allclose(token_memory._divergence(language.Trained(params, config, {})), expected, rtol=0.05)


def test_a_band_is_the_interval_over_the_seeds():
    values = np.array([[1.0, 10.0], [3.0, 1000.0]])
    with figures.figure(2, 2) as drawn:
        axes = drawn.subplots()
        line = figures.band(axes, [0, 1], values, label="", color="k")
        logarithmic = figures.band(axes, [0, 1], values, label="", color="k", log=True)
    np.testing.assert_allclose(line.get_ydata(), [2, 505])
    np.testing.assert_allclose(logarithmic.get_ydata(), [3**0.5, 100])


def test_changes_are_paired_and_stand_in_rows_with_their_names():
    values = {"a": {"m": np.array([0.1, 0.5])}, "b": {"m": np.array([0.2, 0.6])}}
    metric = harness.Metric("m", "metric", percent=True, digits=1)
    results = harness.Results("x", "?", {}, (metric,), values, labels={"a": "one", "b": "two"})
    with figures.figure(4, 2) as drawn:
        named, bare = drawn.subplots(1, 2)
        figures.changes(named, results, metric)
        figures.changes(bare, results, metric, ["b", "a"], title="title", named=False)
    assert [text.get_text() for text in named.get_yticklabels()] == ["one", "two"]
    assert named.get_title(loc="left") == "metric\none: 30.0%"
    assert bare.get_title(loc="left") == "title\ntwo: 40.0%"
    for axes, change in ((named, 10), (bare, -10)):
        bars = [container.lines[2][0].get_segments()[0] for container in axes.containers]
        np.testing.assert_allclose(bars, [[[0, 0], [0, 0]], [[change, 1], [change, 1]]], atol=1e-9)


def test_results_are_called_by_their_module():
    config = linear_probes.Config(seeds=2)
    results = harness.Results.of(config, {}, {})
    assert (results.experiment, results.config["seeds"]) == ("linear_probes", 2)
    assert results.question == listing.questions()["linear_probes"]
    assert results.label("naive_bayes") == "naive Bayes"
    assert harness.Results.of(long_tail.Config(), {}, {}).label("lade") == "LADE"
