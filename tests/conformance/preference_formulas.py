"""The formulas of preference losses once more, in NumPy: the references of their cases."""

import numpy as np


def log_sigmoid(z):
    return -np.logaddexp(0, -z)


def sigmoid(z):
    return np.exp(log_sigmoid(z))


def logistic(z, label_smoothing=0.0):
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


def robust(z, label_smoothing):
    right, wrong = logistic(z), logistic(-z)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def reverse_kl(z, label_smoothing):
    q, p = np.stack([sigmoid(z), sigmoid(-z)]), np.array([1 - label_smoothing, label_smoothing])
    return np.sum(q * (np.log(q) - np.log(p)[:, None]), axis=0)


def discovered(z, tau):
    gate = sigmoid(z / tau)
    return (1 - gate) * logistic(z) + gate * np.exp(-z)


def ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def of_difference(link):
    def reference(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, **hyper):
        chosen, rejected = ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        return link(beta * (chosen - rejected), **hyper)

    return reference


def of_sides(function):
    def reference(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, **more):
        chosen, rejected = ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        return function(chosen, rejected, beta, **more)

    return reference


def count(lengths):
    return np.where(lengths < 1, 1, lengths)


def of_means(function):
    def reference(*, chosen_lengths, rejected_lengths, **rest):
        sides = {"chosen": count(chosen_lengths), "rejected": count(rejected_lengths)}
        for side, lengths in sides.items():
            for name in (f"policy_{side}", f"reference_{side}"):
                if name in rest:
                    rest[name] = rest[name] / lengths
        return function(**rest)

    return reference


def ipo(delta, beta, length_normalize=True):
    return (delta - 1 / (2 * beta)) ** 2


def r_dpo(*, chosen_lengths, rejected_lengths, alpha, beta, label_smoothing=0.0, **log_probs):
    chosen, rejected = ratios(**log_probs)
    return logistic(beta * (chosen - rejected) + alpha * (chosen_lengths - rejected_lengths), label_smoothing)


def dpop(chosen, rejected, beta, lam, label_smoothing=0.0):
    return logistic(beta * (chosen - rejected - lam * np.maximum(-chosen, 0)), label_smoothing)


def sppo(chosen, rejected, beta, chosen_win_rate, rejected_win_rate):
    return ((chosen - (chosen_win_rate - 0.5) / beta) ** 2 + (rejected - (rejected_win_rate - 0.5) / beta) ** 2) / 2


def nca(chosen, rejected, beta):
    return logistic(beta * chosen) + (logistic(-beta * chosen) + logistic(-beta * rejected)) / 2


def bco_pair(chosen, rejected, beta):
    return logistic(beta * chosen) + logistic(-beta * rejected)


def apo_zero(chosen, rejected, beta):
    return 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)


def apo_down(chosen, rejected, beta):
    return 1 + sigmoid(beta * chosen) - sigmoid(beta * (chosen - rejected))


def by_rank(values, others):
    out = np.empty_like(values)
    out[np.argsort(values, kind="stable")] = np.sort(others)
    return out


def aot(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, mask=None, label_smoothing=0.0):
    out, keep = np.zeros(policy_chosen.shape), np.ones(policy_chosen.shape, bool) if mask is None else mask
    policy, held = (policy_chosen - policy_rejected)[keep], (reference_chosen - reference_rejected)[keep]
    out[keep] = logistic(beta * (policy - by_rank(policy, held)), label_smoothing)
    return out


def aot_unpaired(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, mask, label_smoothing=0.0):
    out = np.zeros(policy_chosen.shape)
    chosen, rejected = ratios(
        policy_chosen[mask], policy_rejected[mask], reference_chosen[mask], reference_rejected[mask]
    )
    out[mask] = logistic(beta * (chosen - by_rank(chosen, rejected)), label_smoothing)
    return out


def prefix_sum(log_probs, mask, other_lengths, alpha):
    sums = np.zeros(len(log_probs))
    for row, (values, kept) in enumerate(zip(log_probs, mask, strict=True)):
        own = values[kept]
        shared = int(min(len(own), other_lengths[row]))
        sums[row] = own[:shared].sum() + alpha * own[shared:].sum()
    return sums, mask.sum(-1).astype(np.int32)


def ld_dpo(*, chosen_mask, rejected_mask, alpha, beta, label_smoothing=0.0, **log_probs):
    masks = {"chosen": (chosen_mask, rejected_mask), "rejected": (rejected_mask, chosen_mask)}
    sums = {}
    for name, values in log_probs.items():
        own, other = masks[name.rpartition("_")[2]]
        sums[name] = prefix_sum(values, own, other.sum(-1), alpha)[0]
    return of_difference(logistic)(**sums, beta=beta, label_smoothing=label_smoothing)


def slic(policy_chosen, policy_rejected, delta=1.0, lam=0.0, nll=None):
    return np.maximum(delta - policy_chosen + policy_rejected, 0) + lam * (-policy_chosen if nll is None else nll)


def cpo(policy_chosen, policy_rejected, beta, alpha, label_smoothing=0.0, nll=None):
    nll = -policy_chosen if nll is None else nll
    return logistic(beta * (policy_chosen - policy_rejected), label_smoothing) + alpha * nll


def simpo(policy_chosen, policy_rejected, beta, gamma, label_smoothing=0.0):
    return logistic(beta * (policy_chosen - policy_rejected) - gamma, label_smoothing)


def power(log_probs, alpha):
    return (1 - np.exp(log_probs) ** -alpha) / alpha


def alphapo(policy_chosen, policy_rejected, alpha, **hyper):
    return simpo(power(policy_chosen, alpha), power(policy_rejected, alpha), **hyper)


def log_odds(log_probs):
    clamped = np.minimum(log_probs, -1e-12)
    return clamped - np.log(-np.expm1(clamped))


def orpo(policy_chosen, policy_rejected, lam, nll=None):
    nll = -policy_chosen if nll is None else nll
    return nll + lam * logistic(log_odds(policy_chosen) - log_odds(policy_rejected))


def rrhf(policy_chosen, policy_rejected, lam, nll=None):
    return np.maximum(policy_rejected - policy_chosen, 0) + lam * (-policy_chosen if nll is None else nll)
