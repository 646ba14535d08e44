"""Which losses reach the bandit's optimum and which miss it, and the experiment through its command line."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import harness, preference
from experiments.envs import preference_bandit as bandits
from experiments.envs.preference_language import LanguageConfig, learn_language
from experiments.envs.preference_learning import bandit_arrays, learn, policies, within_budget
from experiments.envs.preference_methods import DEFAULT, METHODS
from experiments.harness import figures
from reweight.train import LossOutput, init_state, make_step, on_device

ROOT = pathlib.Path(__file__).parents[2]
BETA = preference.BETA
FLIPS = (0.0, 0.2)
COMPARED = ("dpo", "cdpo", "robust_dpo", "ipo", "hinge", "exo_pair", "sppo_hard", "apo_zero", "simpo")


@pytest.fixture(scope="module")
def tables():
    """A bandit, and the table policies that losses learn from all its pairs with right and with flipped labels."""
    bandit = bandits.make_bandit(np.random.default_rng(0), prompts=2, answers=4, features=4)
    cells = np.eye(8).reshape(2, 4, 8)
    bandit = bandit._replace(features=cells, rewards=bandit.rewards)
    settings = [bandit_arrays(bandit, bandits.all_rankings(bandit, flip_rate=rate), rate) for rate in FLIPS]
    arrays = jax.tree.map(lambda *x: np.stack(x, 1)[None], *settings)
    params = learn(
        "tables",
        {name: METHODS["pairs"][name] for name in COMPARED},
        arrays,
        jax.random.split(jax.random.key(0), 1),
        learning_rate=0.3,
        steps=300,
        batch_size=2,
        context=harness.Context(),
        knobs=[DEFAULT],
    )
    learned = policies(params[0, ..., 0, :], cells, bandit.reference)
    return bandit, {name: dict(zip(FLIPS, learned[i], strict=True)) for i, name in enumerate(COMPARED)}


def gap(bandit, policy):
    return float(bandits.regret(policy, bandit, BETA))


def test_dpo_and_robust_dpo_without_flips_reach_the_optimum(tables):
    bandit, learned = tables
    assert gap(bandit, bandit.reference) > 0.1
    for name in ("dpo", "cdpo", "robust_dpo"):
        assert gap(bandit, learned[name][0.0]) < 1e-5


def test_of_flipped_labels_robust_dpo_alone_recovers_the_optimum(tables):
    bandit, learned = tables
    assert gap(bandit, learned["robust_dpo"][0.2]) < 1e-5
    assert gap(bandit, learned["dpo"][0.2]) > 1e-2
    # cDPO smooths what the flips have smoothed already.
    assert gap(bandit, learned["cdpo"][0.2]) > gap(bandit, learned["dpo"][0.2])


def test_dpo_of_flipped_labels_is_the_optimum_of_the_shrunken_rewards(tables):
    """For two answers, that is; here of each pair the label's log-odds are what the policy would like to have."""
    bandit, learned = tables
    policy = np.asarray(learned["dpo"][0.2] - bandit.reference)
    right = jax.nn.sigmoid(bandit.rewards[:, :, None] - bandit.rewards[:, None, :])
    labels = 0.8 * right + 0.2 * (1 - right)
    margins = jax.nn.sigmoid(BETA * (policy[:, :, None] - policy[:, None, :]))
    # The gradient of the expected loss by each answer's log-ratio is 0.
    np.testing.assert_allclose(np.sum(labels - margins, axis=-1), 0, atol=1e-3)


def test_ipo_reaches_its_own_optimum_which_is_linear_in_the_preference_probability(tables):
    bandit, learned = tables
    wins = np.mean(jax.nn.sigmoid(bandit.rewards[:, :, None] - bandit.rewards[:, None, :]), axis=-1)
    own = jax.nn.log_softmax(bandit.reference + wins / BETA)
    assert float(bandits.divergence(learned["ipo"][0.0], own)) < 1e-6
    assert gap(bandit, learned["ipo"][0.0]) > 1e-2


@pytest.mark.parametrize("name", ["hinge", "exo_pair", "sppo_hard", "apo_zero", "simpo"])
def test_losses_of_other_calibration_miss_the_optimum(tables, name):
    bandit, learned = tables
    assert gap(bandit, learned[name][0.0]) > 1e-3


def test_a_policy_is_drawn_back_just_as_far_as_the_budget_asks():
    bandit = bandits.make_bandit(np.random.default_rng(1), prompts=5)
    params = jax.random.normal(jax.random.key(0), (3, 16)) * jnp.array([[0.1], [2.0], [5.0]])
    fitted = within_budget(params, bandit.features, bandit.reference, 0.3)
    before, after = (
        bandits.divergence(policies(p, bandit.features, bandit.reference), bandit.reference) for p in (params, fitted)
    )
    assert before[0] < 0.3 < before[1]
    np.testing.assert_array_equal(fitted[0], params[0])
    np.testing.assert_allclose(after[1:], 0.3, atol=1e-3)
    np.testing.assert_allclose(fitted[2] / params[2], (fitted[2] / params[2])[0], rtol=1e-4)


def test_the_best_within_a_budget_on_a_way():
    kl = np.array([[0.0, 1.0, 2.0], [0.0, 0.1, 0.2]])
    reward = np.array([[0.0, 1.0, 3.0], [0.0, 0.5, 0.2]])
    np.testing.assert_allclose(preference.frontier(kl, reward, 1.5), [2.0, 0.5])


def test_names_at_the_ends_of_lines_do_not_overlap():
    with figures.figure(3, 3) as drawn:
        axes = drawn.subplots()
        axes.plot([0, 1], [0, 1])
        figures.label_ends(axes, {"a": (1, 0.5, "k"), "b": (1, 0.5, "r"), "c": (1, 0.51, "b")})
        heights = sorted(text.get_position()[1] for text in axes.texts)
    assert np.min(np.diff(heights)) > 0.05


# Without the language model, which takes long to compile.
SMALL = ["--smoke", "--prompts", "12", "--steps", "6", "--table-steps", "6", "--methods", "kto", "infonca"]


def command(*words):
    module = preference
    return harness.main("preference", config=module.Config, run=module.run, draw=module.draw, argv=list(words))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    results = command(*SMALL, "--out", str(out), "--store", str(out / "kept"))
    (run,) = (out / "preference").iterdir()
    return results, run


def test_a_run_leaves_results_metrics_figure_and_checkpoints(finished):
    results, run = finished
    assert list(results.values) == ["kto", "infonca"]
    for method, values in results.values.items():
        for metric, numbers in values.items():
            assert np.shape(numbers) == (2,), (method, metric)
            assert np.all(np.isfinite(numbers)), (method, metric)
    measured = {metric for values in results.values.values() for metric in values}
    assert {m.name for m in preference.METRICS if not m.name.startswith("language")} == measured
    assert (run / "preference.png").read_bytes().startswith(b"\x89PNG")
    assert (run.parent.parent / "kept" / "preference.json").read_text() == (run / "results.json").read_text()
    for name in ("bandit-pairs", "bandit-sets", "table-pairs", "table-sets"):
        assert (run / "metrics" / f"{name}.jsonl").stat().st_size
        assert list((run / "checkpoints" / name).iterdir())


class Killed(BaseException):
    pass


def test_an_interrupted_run_ends_with_the_same_numbers(finished, tmp_path, monkeypatch):
    whole, run = finished
    chunk, done = on_device._chunk, []

    def killed_in_the_second_chunk(*args):
        done.append(True)
        if len(done) == 2:
            raise Killed
        return chunk(*args)

    with monkeypatch.context() as patched:
        patched.setattr(on_device, "_chunk", killed_in_the_second_chunk)
        with pytest.raises(Killed):
            command(*SMALL, "--out", str(tmp_path))
    resumed = command("--out", str(tmp_path), "--resume", "last")
    jax.tree.map(np.testing.assert_array_equal, dict(resumed.values), dict(whole.values))
    (again,) = (tmp_path / "preference").iterdir()
    assert (again / "results.json").read_text() == (run / "results.json").read_text()


def test_evaluations_survive_an_interruption(tmp_path, monkeypatch):
    optimizer = optax.sgd(0.1)
    keys = jax.random.split(jax.random.key(0), 2)
    step = make_step(lambda params, extra, batch, key: LossOutput((params - batch["x"]) ** 2), optimizer)
    options = {"batch_size": 2, "num_steps": 7, "eval_fn": lambda state: {"at": state.params}, "eval_every": 2}

    def train(path):
        state = jax.vmap(lambda key: init_state(jnp.zeros(()), None, optimizer, key=key))(keys)
        arrays = {"x": jnp.arange(6.0)}
        return harness.train_seeds("m", step, state, arrays, keys, context=harness.Context(path), **options)

    whole_state, whole = train(None)
    assert whole["at"].shape == (2, 3)
    chunk, done = on_device._chunk, []

    def killed(*args):
        done.append(True)
        if len(done) == 2:
            raise Killed
        return chunk(*args)

    with monkeypatch.context() as patched:
        patched.setattr(on_device, "_chunk", killed)
        with pytest.raises(Killed):
            train(tmp_path)
    state, found = train(tmp_path)
    np.testing.assert_array_equal(state.params, whole_state.params)
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_on_a_mesh_the_seeds_are_divided_and_the_numbers_stay(finished):
    config = dataclasses.replace(
        preference.Config.smoke(), prompts=12, steps=6, table_steps=6, methods=("kto",), mesh="data=8"
    )
    results = preference.run(config)
    for metric, numbers in finished[0].values["kto"].items():
        np.testing.assert_allclose(results.values["kto"][metric], numbers, rtol=1e-3, atol=1e-4)


def test_a_language_model_learns_from_pairs_of_its_own_reviews():
    config = LanguageConfig(reference_steps=60, prompts=128, steps=30, evaluations=2, reviews=256, learning_rate=3e-3)
    methods = {name: METHODS["pairs"][name] for name in ("simpo", "orpo")}
    found = learn_language(methods, [2.0, 1.0], config, seeds=[0], mesh=None, context=harness.Context())
    assert found["kl"].shape == found["reward"].shape == (1, 3, 2)
    np.testing.assert_array_equal(found["kl"][:, 0], 0)
    assert np.all(found["kl"][:, -1] > 0)
    assert np.all(found["reward"][:, -1] > found["reward"][:, 0])


def test_a_loss_that_looks_at_all_answers_is_none_for_a_language_model():
    config = LanguageConfig(reference_steps=1, prompts=16, steps=1, evaluations=1, reviews=8)
    with pytest.raises(ValueError, match="argument `methods` is with a loss that looks at all the answers to a prompt"):
        learn_language({"wpo": METHODS["pairs"]["wpo"]}, [0.1], config, seeds=[0], mesh=None, context=harness.Context())


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "1"), ("--prompts", "1"), ("--learning-rate", "0")])
def test_a_wrong_option_is_one_line_that_names_it(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(option, value, "--out", str(tmp_path))
    assert f"`{option[2:].replace('-', '_')}` is {value}" in " ".join(capsys.readouterr().err.split())


def test_the_released_results_are_those_of_the_module_as_it_is():
    stored = json.loads((ROOT / "docs" / "results" / "preference.json").read_text())
    assert stored["config"] == json.loads(json.dumps(dataclasses.asdict(preference.Config())))
    assert list(stored["methods"]) == list(preference.NAMES)
    claims = [harness.Claim(*(claim[field] for field in harness.Claim._fields)) for claim in stored["claims"]]
    assert claims == list(preference.CLAIMS)
    judged = functools.partial(
        harness.judge,
        values={
            method: {metric: np.array(entry["values"]) for metric, entry in metrics.items()}
            for method, metrics in stored["methods"].items()
        },
    )
    for claim, entry in zip(preference.CLAIMS, stored["claims"], strict=True):
        assert judged(claim).seeds >= 5
        assert judged(claim).as_dict() == entry
    assert (ROOT / "docs" / "results" / "preference.png").stat().st_size < 200_000
