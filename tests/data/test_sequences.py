"""The sequence tasks: every answer and reward is recomputed in plain Python from the decoded text."""

import collections
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reweight.data import sequences

N = 256
TASKS = {name: task() for name, task in sequences.SEQUENCE_TASKS.items()} | {
    "addition of the sum alone": sequences.Addition(digits=2, steps=False),
    "long modular chains": sequences.ModularArithmetic(modulus=7, terms=4),
    "one kind of bracket": sequences.BracketCompletion(max_brackets=7, depth=2, kinds=1),
    "balance of four kinds": sequences.BracketBalance(max_brackets=20, kinds=4),
    "long values": sequences.KeyValueRecall(pairs=3, keys=4, values=5, span=3),
    "a taste for length": sequences.Sentiment(max_clauses=3, length_bias=0.25),
}
EXACT = [name for name, task in TASKS.items() if not isinstance(task, sequences.Sentiment)]
PAIRS = dict(zip("([{<", ")]}>", strict=True))
every_task = pytest.mark.parametrize("name", TASKS)


@functools.cache
def compiled(name):
    """`sample` for N rows and `reward`, compiled once a task."""
    task = TASKS[name]
    return jax.jit(functools.partial(task.sample, n=N)), jax.jit(task.reward)


@functools.cache
def drawn(name, seed=0):
    return jax.device_get(compiled(name)[0](jax.random.key(seed)))


def parts(name, seed=0):
    """Prompts, answers and the mask of the answers."""
    batch, p = drawn(name, seed), TASKS[name].prompt_length
    return batch.tokens[:, :p], batch.tokens[:, p:], batch.response_mask[:, p:]


def reward(name, prompts, responses, mask):
    return np.asarray(compiled(name)[1](prompts, responses, mask))


def texts(task, ids):
    return [task.decode(row).split() for row in np.asarray(ids)]


# Plain Python, on lists of symbols.


def stack_machine(symbols):
    """The brackets left open by the symbols before the first mistake, the fewest ones on the way, and no mistake."""
    stack, fewest = [], 0
    for symbol in symbols:
        if symbol in PAIRS:
            stack.append(symbol)
        elif stack and symbol == PAIRS[stack[-1]]:
            stack.pop()
        else:
            return stack, fewest, False
        fewest = min(fewest, len(stack))
    return stack, fewest, True


def open_and_fewest(before, after):
    stack, _, valid = stack_machine(before)
    assert valid
    opened, fewest = len(stack), len(stack)
    for symbol in after:
        if symbol in PAIRS:
            stack.append(symbol)
        elif stack and symbol == PAIRS[stack[-1]]:
            stack.pop()
        else:
            return opened, fewest, False
        fewest = min(fewest, len(stack))
    return opened, fewest, not stack


def score_addition(task, prompt, words, ended):
    d = task.digits
    left, right = (int("".join(prompt[at : at + d])) for at in (1, d + 2))
    outcome = (
        ended and words[-(d + 1) :] == list(f"{left + right:0{d + 1}d}") and words[-(d + 2) : -(d + 1)] in ([], [";"])
    )
    if not task.steps:
        return float(outcome)
    right_steps, carry = 0, 0
    for column in range(d):
        a, b = (number // 10**column % 10 for number in (left, right))
        total = a + b + carry
        step = f"{a} + {b} + {carry} = {total // 10} {total % 10} ;".split()
        right_steps += words[9 * column : 9 * column + 9] == step
        carry = total // 10
    share = right_steps / max(d, words.count(";"))
    return task.process_weight * share + (1 - task.process_weight) * outcome


def score_modular_arithmetic(task, prompt, words, ended):
    value, results = int(prompt[1]), []
    for sign, number in zip(prompt[2:-1:2], prompt[3::2], strict=True):
        value = {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](value, int(number)) % task.modulus
        results.append(str(value))
    if not ended or len(words) != len(results):
        return 0.0
    return sum(map(operator.eq, words, results)) / len(results)


def score_bracket_completion(task, prompt, words, ended):
    opened, fewest, balanced = open_and_fewest(prompt[1:-1], words)
    return 1.0 if balanced and ended else 0.5 * (opened - fewest) / opened


def score_bracket_balance(task, prompt, words, ended):
    stack, _, valid = stack_machine(prompt[1:-1])
    return float(ended and words == ["yes" if valid and not stack else "no"])


def score_key_value_recall(task, prompt, words, ended):
    pairs = [prompt[at : at + 1 + task.span] for at in range(1, len(prompt) - 2, 1 + task.span)]
    value = {key: value for key, *value in pairs}[prompt[-1]]
    if not ended or len(words) != len(value):
        return 0.0
    return sum(map(operator.eq, words, value)) / len(value)


VALUES = {
    "superb": 0.5, "great": 0.375, "good": 0.25, "fine": 0.125, "plain": 0, "usual": 0,
    "weak": -0.125, "bad": -0.25, "poor": -0.375, "awful": -0.5,
}  # fmt: skip
VALUES_BY_TOPIC = {
    "food": {"light": 0.25, "quiet": 0, "long": -0.25, "rich": 0.5},
    "film": {"light": 0, "quiet": -0.5, "long": -0.375, "rich": 0.375},
    "hotel": {"light": -0.25, "quiet": 0.5, "long": 0.25, "rich": 0.25},
    "phone": {"light": 0.5, "quiet": -0.25, "long": 0.375, "rich": -0.5},
}


def clause_values(task, prompt, words):
    """The values of the clauses of a review, or None if it is not of the grammar."""
    values = VALUES | VALUES_BY_TOPIC[prompt[1]]
    found = []
    for clause in " ".join(words).split(" and ") if words else [""]:
        match clause.split(" "):
            case [word] if word in values:
                found.append(values[word])
            case ["very", word] if word in values:
                found.append(2 * values[word])
            case ["not", word] if word in values:
                found.append(-values[word])
            case _:
                return None
    return found if len(found) <= task.max_clauses else None


def score_sentiment(task, prompt, words, ended):
    values = clause_values(task, prompt, words)
    if not ended or values is None:
        return 0.0
    quality = (1 + sum(values) / len(values)) / 2
    return (1 - task.length_bias) * quality + task.length_bias * len(values) / task.max_clauses


SCORES = {
    sequences.Addition: score_addition,
    sequences.ModularArithmetic: score_modular_arithmetic,
    sequences.BracketCompletion: score_bracket_completion,
    sequences.BracketBalance: score_bracket_balance,
    sequences.KeyValueRecall: score_key_value_recall,
    sequences.Sentiment: score_sentiment,
}


def expected_rewards(name, prompts, responses, mask):
    task = TASKS[name]
    scores = []
    for prompt, response, kept in zip(texts(task, prompts), np.asarray(responses), np.asarray(mask), strict=True):
        known = (response >= 0) & (response < task.vocab_size) & (kept != 0)
        words = [task.vocabulary[i] for i in np.where(known, response, task.pad_id)]
        ended = "<eos>" in words
        words = words[: words.index("<eos>")] if ended else words
        scores.append(SCORES[type(task)](task, prompt, words, ended))
    return np.array(scores, np.float64)


@pytest.mark.parametrize("name", EXACT)
def test_the_answer_has_reward_one_and_is_scored_so_by_plain_python(name):
    np.testing.assert_array_equal(reward(name, *parts(name)), 1)
    np.testing.assert_array_equal(expected_rewards(name, *parts(name)), 1)


@every_task
def test_the_reward_of_a_damaged_answer_is_that_of_plain_python(name):
    prompts, answers, mask = parts(name)
    task, rng = TASKS[name], np.random.default_rng(0)
    n, width = answers.shape
    damaged = answers.copy()
    for _ in range(2):
        damaged[np.arange(n), rng.integers(width, size=n)] = rng.integers(-2, task.vocab_size + 2, size=n)
    for responses, kept in ((damaged, np.ones_like(mask)), (damaged, mask), (damaged, rng.random(mask.shape) < 0.9)):
        expected = expected_rewards(name, prompts, responses, kept)
        np.testing.assert_allclose(reward(name, prompts, responses, kept), expected, rtol=1e-6)
    assert 0 <= expected.min() < expected.max() <= 1


@every_task
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_reward_of_any_tokens_at_all_is_that_of_plain_python(name, data):
    prompts, answers, _ = parts(name)
    task = TASKS[name]
    some = st.integers(0, task.vocab_size - 1)
    tokens = np.array(data.draw(st.lists(some, min_size=answers.shape[1], max_size=answers.shape[1])))
    # Rows that begin with the right answer up to every column, and go on with anything.
    responses = np.where(np.arange(answers.shape[1]) < np.arange(N)[:, None] % answers.shape[1], answers, tokens)
    rewards = reward(name, prompts, responses, np.ones_like(responses))
    np.testing.assert_allclose(rewards, expected_rewards(name, prompts, responses, np.ones_like(responses)), rtol=1e-6)


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_wrong_symbol_anywhere_in_an_answer_costs_reward(name, data):
    prompts, answers, mask = parts(name)
    task = TASKS[name]
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    place = rng.integers(mask.sum(axis=1))
    wrong = answers.copy()
    shift = rng.integers(1, task.vocab_size, size=N)
    wrong[np.arange(N), place] = (answers[np.arange(N), place] + shift) % task.vocab_size
    rewards = reward(name, prompts, wrong, np.ones_like(mask))
    assert rewards.max() < 1
    assert rewards.min() >= 0


@every_task
def test_garbage_has_reward_zero_and_width_does_not_matter(name):
    prompts, answers, mask = parts(name)
    task = TASKS[name]
    for garbage in (task.pad_id, task.bos_id, task.eos_id, task.vocab_size, -1):
        full = np.full_like(answers, garbage)
        np.testing.assert_array_equal(reward(name, prompts, full, np.ones_like(mask)), 0)
    np.testing.assert_array_equal(reward(name, prompts, answers, np.zeros_like(mask)), 0)
    right = reward(name, prompts, answers, mask)
    wider = [np.pad(x, ((0, 0), (0, 3)), constant_values=1) for x in (answers, mask)]
    np.testing.assert_array_equal(reward(name, prompts, *wider), right)
    narrow = reward(name, prompts, answers[:, :1], mask[:, :1])
    np.testing.assert_allclose(narrow, expected_rewards(name, prompts, answers[:, :1], mask[:, :1]), rtol=1e-6)


@every_task
def test_the_layout_of_a_batch(name):
    task, batch = TASKS[name], drawn(name)
    p = task.prompt_length
    assert batch.tokens.shape == (N, task.max_length) == (N, p + task.response_length)
    assert batch.tokens.dtype == np.int32
    np.testing.assert_array_equal(batch.mask, batch.tokens != task.pad_id)
    np.testing.assert_array_equal(batch.mask, batch.prompt_mask | batch.response_mask)
    assert not batch.prompt_mask[:, p:].any()
    assert not batch.response_mask[:, :p].any()
    # The prompt leans on the answer: the real tokens of a row are contiguous, from the first one to the end token.
    assert np.all(np.diff(batch.prompt_mask[:, :p].astype(int), axis=1) >= 0)
    assert np.all(np.diff(batch.response_mask[:, p:].astype(int), axis=1) <= 0)
    first, last = batch.prompt_mask.argmax(axis=1), task.max_length - 1 - batch.response_mask[:, ::-1].argmax(axis=1)
    np.testing.assert_array_equal(batch.tokens[np.arange(N), first], task.bos_id)
    np.testing.assert_array_equal(batch.tokens[np.arange(N), last], task.eos_id)
    assert (batch.tokens == task.eos_id).sum() == (batch.tokens == task.bos_id).sum() == N
    assert batch.response_mask[:, p:].any(axis=0).all(), "no answer fills the width"


@every_task
def test_the_key_decides_and_prompts_are_those_of_the_batch(name):
    task, p = TASKS[name], TASKS[name].prompt_length

    @jax.jit
    @jax.vmap
    def both(key):
        batch = task.sample(key, N)
        responses, mask = batch.tokens[:, p:], batch.response_mask[:, p:]
        return task.prompts(key, N), batch, task.reward(batch.tokens[:, :p], responses, mask)

    prompts, batch, rewards = jax.device_get(both(jnp.stack([jax.random.key(0), jax.random.key(1)])))
    np.testing.assert_array_equal(prompts.tokens, batch.tokens[..., :p])
    np.testing.assert_array_equal(prompts.mask, batch.prompt_mask[..., :p])
    assert np.any(batch.tokens[0] != batch.tokens[1])
    for seed in range(2):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, s=seed: x[s], batch), drawn(name, seed))
        np.testing.assert_allclose(rewards[seed], reward(name, *parts(name, seed)), rtol=1e-6)


@every_task
def test_text_and_ids(name):
    task = TASKS[name]
    assert len(set(task.vocabulary)) == task.vocab_size == len(task.vocabulary)
    assert [task.vocabulary[i] for i in (task.pad_id, task.bos_id, task.eos_id, task.sep_id)] == [
        "<pad>", "<bos>", "<eos>", "<sep>",
    ]  # fmt: skip
    for row in drawn(name).tokens[:8]:
        ids = task.encode(task.decode(row))
        np.testing.assert_array_equal(ids, row[row != task.pad_id])
        assert ids.dtype == np.int32
    with pytest.raises(ValueError, match=r"encode: argument `text` is with 'nonsense'; allowed: words of <pad> <bos>"):
        task.encode("<bos> nonsense")
    with pytest.raises(ValueError, match=r"decode: argument `ids`"):
        task.decode([task.vocab_size])
    with pytest.raises(ValueError, match=r"decode: argument `ids`"):
        task.decode(drawn(name).tokens[:2])


@pytest.mark.parametrize("name", sequences.SEQUENCE_TASKS)
def test_batches_and_rewards_are_the_same_under_x64(name):
    task = TASKS[name]
    prompts, answers, mask = parts(name)
    with jax.enable_x64(True):
        # int32 data and a float32 reward, whatever the default dtypes are.
        shapes = jax.eval_shape(functools.partial(task.sample, n=4), jax.random.key(0))
        assert shapes.tokens.dtype == jnp.int32
        rewards = jax.jit(task.reward)(prompts, answers, mask)
        assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, reward(name, prompts, answers, mask), rtol=1e-6)


def test_prompts_joined_with_their_answers_are_the_batch_and_with_several_each_is_scored_alone():
    task, batch = TASKS["sentiment"], drawn("sentiment")
    cut = task.prompt_length
    prompts, prompt_mask = batch.tokens[:, :cut], batch.mask[:, :cut]
    answers, answer_mask = batch.tokens[:, cut:], batch.response_mask[:, cut:]
    for came, wanted in zip(sequences.join(prompts, prompt_mask, answers, answer_mask), batch, strict=True):
        np.testing.assert_array_equal(came, wanted)
    several, masks = (np.stack([x, np.roll(x, 1, axis=0)], axis=1) for x in (answers, answer_mask))
    rewards = task.reward(prompts, several, masks)
    joined = sequences.join(prompts, prompt_mask, several, masks)
    for i in range(2):
        np.testing.assert_array_equal(rewards[:, i], task.reward(prompts, several[:, i], masks[:, i]))
        one = sequences.join(prompts, prompt_mask, several[:, i], masks[:, i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[:, i], y), joined, one)
    with pytest.raises(ValueError, match=r"data\.sequences\.join: argument `responses` is of shape"):
        sequences.join(prompts, prompt_mask, answers[:3], answer_mask[:3])


def test_the_carry_runs_through_all_columns():
    task = sequences.Addition(digits=3)
    prompt = task.encode("<bos> 9 9 9 + 0 0 1 =")
    answer = task.encode("9 + 1 + 0 = 1 0 ; 9 + 0 + 1 = 1 0 ; 9 + 0 + 1 = 1 0 ; 1 0 0 0 <eos>")
    assert task.reward(prompt[None], answer[None], np.ones((1, len(answer)))) == 1
    lazy = task.encode("1 0 0 0 <eos>")
    assert task.reward(prompt[None], lazy[None], np.ones((1, len(lazy)))) == 0.5
    assert sequences.Addition(process_weight=0.0).reward(prompt[None], lazy[None], np.ones((1, len(lazy)))) == 1
    wrong_step = answer.copy()
    wrong_step[8 + 5] = task.encode("0")[0]
    np.testing.assert_allclose(
        task.reward(prompt[None], wrong_step[None], np.ones((1, len(answer)))), 0.5 + 0.5 * 2 / 3
    )


def test_brackets_of_prompts_stay_open_within_the_depth_and_the_shortest_answer_closes_them():
    for name in ("bracket_completion", "one kind of bracket"):
        task, (prompts, answers, _) = TASKS[name], parts(name)
        lengths = set()
        for prompt, answer in zip(texts(task, prompts), texts(task, answers), strict=True):
            stack, _, valid = stack_machine(prompt[1:-1])
            assert valid
            assert 1 <= len(stack) <= task.depth
            assert answer[:-1] == [PAIRS[bracket] for bracket in reversed(stack)]
            deepest = max(len(stack_machine(prompt[1:end])[0]) for end in range(1, len(prompt)))
            assert deepest <= task.depth
            lengths.add(len(prompt) - 2)
        assert lengths == set(range(1, task.max_brackets + 1))


def test_a_longer_completion_is_right_too():
    task = sequences.BracketCompletion()
    prompt = np.zeros((1, task.prompt_length), np.int32)
    text = task.encode("<bos> ( [ <sep>")
    prompt[0, -len(text) :] = text
    for answer, expected in {
        "] ) <eos>": 1, "] ( ) ) [ ] <eos>": 1, "] )": 0.5, "] <eos>": 0.25, ") ] <eos>": 0, "( ) ] ] ) <eos>": 0.25,
    }.items():  # fmt: skip
        ids = task.encode(answer)[None]
        assert task.reward(prompt, ids, np.ones_like(ids)) == expected, answer


def test_half_of_the_strings_are_balanced_and_counts_of_brackets_do_not_tell_which():
    for name in ("bracket_balance", "balance of four kinds"):
        task = TASKS[name]
        rows = [row for seed in range(4) for row in texts(task, drawn(name, seed).tokens)]
        said = collections.Counter(row[-2] for row in rows)
        assert abs(said["yes"] / len(rows) - 0.5) < 5 * 0.5 / math.sqrt(len(rows))
        for row in rows:
            counts = collections.Counter(row[1:-3])
            assert all(counts[left] == counts[right] for left, right in PAIRS.items())
        assert {len(row) - 4 for row in rows} == set(range(2, task.max_brackets + 1, 2))


def test_reviews_have_the_probabilities_that_the_scorer_says():
    task = sequences.Sentiment(max_clauses=3, continued=0.5, modified=0.25)
    batch = jax.device_get(task.sample(jax.random.key(0), 4000))
    fields = (batch.tokens[:, :4], batch.tokens[:, 4:], batch.response_mask[:, 4:])
    scores = jax.device_get(jax.jit(task.scores)(*fields))
    assert scores.grammatical.all()
    np.testing.assert_allclose(np.bincount(scores.clauses) / 4000, [0, 0.5, 0.25, 0.25], atol=0.04)
    for prompt, review, quality, clauses, log_prob in zip(
        texts(task, fields[0][:100]),
        texts(task, fields[1]),
        scores.quality,
        scores.clauses,
        scores.log_prob,
        strict=False,
    ):
        values = clause_values(task, prompt, review[:-1])
        assert clauses == len(values)
        np.testing.assert_allclose(quality, (1 + np.mean(values)) / 2, rtol=1e-6)
        modified = sum(word in ("not", "very") for word in review)
        probability = 0.125**modified * 0.75 ** (clauses - modified) / 14**clauses * 0.5 ** min(clauses, 2)
        np.testing.assert_allclose(log_prob, math.log(probability), rtol=1e-5)
    # The entropy of one review: of the clauses, and of whether there is another one.
    clause = 2 * 0.125 * math.log(8) + 0.75 * math.log(1 / 0.75) + math.log(14)
    entropy = 1.75 * clause + 1.5 * math.log(2)
    np.testing.assert_allclose(-scores.log_prob.mean(), entropy, rtol=0.05)
    garbage = task.scores(fields[0], fields[1][:, ::-1], batch.mask[:, 4:])
    assert not garbage.grammatical.any()
    assert np.all(np.isneginf(garbage.log_prob))


def test_the_taste_for_length_is_what_it_says():
    plain, biased = sequences.Sentiment(), sequences.Sentiment(length_bias=0.25)
    prompt = plain.encode("<bos> hotel cedar <sep>")[None]
    rewards = {}
    for task in (plain, biased):
        for text in ("very quiet", "very quiet and very quiet", "awful", "awful and awful and awful"):
            ids = task.encode(f"{text} <eos>")[None]
            rewards[task.length_bias, text] = float(task.reward(prompt, ids, np.ones_like(ids))[0])
    assert rewards[0.0, "very quiet"] == rewards[0.0, "very quiet and very quiet"] == 1
    assert rewards[0.0, "awful"] == rewards[0.0, "awful and awful and awful"] == 0.25
    np.testing.assert_allclose(
        rewards[0.25, "very quiet and very quiet"] - rewards[0.25, "very quiet"], 0.25 / 5, rtol=1e-6
    )
    np.testing.assert_allclose(rewards[0.25, "awful and awful and awful"] - rewards[0.25, "awful"], 0.5 / 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequences.Addition(digits=0), "`digits` is 0"),
        (lambda: sequences.Addition(process_weight=1.0), "`process_weight` is 1.0"),
        (lambda: sequences.ModularArithmetic(modulus=1), "`modulus` is 1"),
        (lambda: sequences.ModularArithmetic(terms=1), "`terms` is 1"),
        (lambda: sequences.ModularArithmetic(operations=("/",)), "`operations` is '/'"),
        (lambda: sequences.ModularArithmetic(operations=()), r"`operations` is \(\)"),
        (lambda: sequences.BracketCompletion(depth=1), "`depth` is 1"),
        (lambda: sequences.BracketCompletion(kinds=5), "`kinds` is 5"),
        (lambda: sequences.BracketBalance(max_brackets=7), "`max_brackets` is 7"),
        (lambda: sequences.KeyValueRecall(pairs=17), "`pairs` is 17"),
        (lambda: sequences.KeyValueRecall(span=0), "`span` is 0"),
        (lambda: sequences.Sentiment(continued=1.5), "`continued` is 1.5"),
        (lambda: sequences.Sentiment().sample(jax.random.key(0), 0), "`n` is 0"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("wrong", "shapes"),
    [
        ("prompts", [(2, 3), (2, 5), (2, 5)]),
        ("responses", [(2, 4), (3, 5), (3, 5)]),
        ("response_mask", [(2, 4), (2, 5), (2, 4)]),
    ],
)
def test_shapes_that_do_not_fit_are_named(wrong, shapes):
    task = sequences.Sentiment()
    for method in (task.reward, task.scores):
        with pytest.raises(ValueError, match=rf"Sentiment.{method.__name__}: argument `{wrong}` is of shape"):
            method(*(np.ones(shape, np.int32) for shape in shapes))
