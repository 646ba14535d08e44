"""The page that leads from a trouble to what helped: `python -m experiments.harness.troubles > docs/troubles.md`.

Every number on the page is one of the stored results; nothing is run.
"""

import importlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.harness.claims import mean_interval
from experiments.harness.report import STORED
from experiments.harness.results import Metric

__all__ = ["TROUBLES", "Trouble", "page"]

OPENING = """# Which loss for which trouble?

For each trouble, what the released experiments found: the change that a method makes to the plain baseline, paired over
the seeds, with the 95% interval. **Bold** is a change for the better whose interval leaves out 0, *italic* one for the
worse; what is neither was not told from no change with so many seeds. Changes of shares are in points. These are small
problems that run in a minute: they show a mechanism at work, not how large its effect is on yours. The
[results](results.md) have all numbers, the verdicts on what papers claim, and the figures.
"""


class Trouble(NamedTuple):
    """A trouble, and where it was looked into.

    Attributes:
      heading: the trouble.
      setting: what was done about it, in a sentence or two without numbers.
      experiment: the module.
      metrics: which of its metrics tell whether it is better, the most telling first.
      baseline: the method against which changes are counted.
      methods: the others by name in the experiment, with what they are called and made of in the package.
    """

    heading: str
    setting: str
    experiment: str
    metrics: tuple[str, ...]
    baseline: str
    methods: Mapping[str, str]


CLASSIFICATION, ADVERSARIAL = "losses.classification", "losses.adversarial"

TROUBLES: tuple[Trouble, ...] = (
    Trouble(
        "Some labels are wrong",
        "Digits with wrong labels that are spread evenly, that all go to one other class, or that depend on the input;"
        " accuracy at the last step, without a stop in time. Losses that bound what one example can say, targets that"
        " remember what a network said earlier, and the choice of examples by their losses.",
        "noisy_labels",
        ("accuracy_symmetric_60", "accuracy_pair_40", "accuracy_instance_40"),
        "cross_entropy",
        {
            "gce": f"`{CLASSIFICATION}.generalized_cross_entropy`",
            "nce_rce": f"`{CLASSIFICATION}.nce_rce`",
            "ldr_kl": f"`{CLASSIFICATION}.ldr_kl`",
            "aldr_kl": f"`{CLASSIFICATION}.aldr_kl`",
            "elr": f"`{CLASSIFICATION}.elr`",
            "ps_kd": f"`{CLASSIFICATION}.ps_kd`",
            "storm": "`weights.storm`",
            "co_teaching": "`weights.co_teaching`",
            "nested_co_teaching": "`weights.co_teaching`, `regularizers.nested.nested_dropout`",
        },
    ),
    Trouble(
        "Some classes are rare",
        "Digits whose frequencies fall off in training and are equal in the test set.",
        "long_tail",
        ("balanced_accuracy", "tail_accuracy", "worst_class_accuracy"),
        "cross_entropy",
        {
            "logit_adjustment": f"`{CLASSIFICATION}.logit_adjusted_cross_entropy`",
            "lade": f"`{CLASSIFICATION}.lade`",
            "ldam_deferred": f"`{CLASSIFICATION}.ldam`, `weights.deferred_class_weights`",
            "inverse_frequency": "`weights.inverse_frequency`",
            "effective_number": "`weights.class_balanced`",
            "focal": f"`{CLASSIFICATION}.focal_loss`",
            "kl_dro": "`weights.kl_dro`",
            "cvar_dro": "`weights.cvar_dro`",
            "group_dro": "`weights.group_dro`",
        },
    ),
    Trouble(
        "A pre-trained model brings its own bias",
        "Models pre-trained on other class frequencies than those that they are tuned on.",
        "long_tail",
        ("tuned_accuracy", "tuning_tail", "pretraining_tail"),
        "tuned",
        {
            "tuned_adjusted": f"`{CLASSIFICATION}.logit_adjusted_cross_entropy`",
            "tuned_generalized": f"`{CLASSIFICATION}.logit_adjusted_cross_entropy` with `model_prior`",
            "backdoor_adjustment": "`merge.backdoor_adjustment` of three pre-trained apart",
            "tuned_best": "the best of the three, adjusted",
            "same_together": "three pre-trained alike, together",
        },
    ),
    Trouble(
        "The rarest outcome of an order matters most",
        "Ordered outcomes with a rare last one; the error of its probability. The baseline is logistic regression on"
        " *rare or not*.",
        "rare_events",
        ("error_mild", "error_rare", "error_rarer"),
        "logistic",
        {
            "proportional_odds": "`losses.ordinal.cumulative_logit_nll`, one slope",
            "presto": "`regularizers.fused.presto_cross_validation`",
        },
    ),
    Trouble(
        "Some lives end early, others late",
        "Censored lives, ranked by networks. The baseline is one grid of hazards.",
        "rare_events",
        ("short", "long", "overall"),
        "one_grid",
        {
            "two_terms": "`losses.survival.two_term_hazard_nll`",
            "cox": "Cox's partial likelihood",
        },
    ),
    Trouble(
        "What counts is F1, not accuracy",
        "Few positives among many negatives; a linear model trained on the metric itself.",
        "metric_losses",
        ("f1_gaussians", "balanced_accuracy_gaussians", "f1_tumours"),
        "cross_entropy",
        {
            "tuned_threshold": "cross-entropy, and the threshold that is best for the metric in training",
            "squared_error": "squared error",
            "anyloss_f1": "`losses.metric.anyloss` of `f_beta`",
            "anyloss_g_mean": "`losses.metric.anyloss` of `g_mean`",
            "anyloss_balanced_accuracy": "`losses.metric.anyloss` of `balanced_accuracy`",
        },
    ),
    Trouble(
        "A network fits the training labels of two classes",
        "More parameters than examples. The baseline is the logistic loss; EnsLoss draws another loss for every batch.",
        "metric_losses",
        ("accuracy",),
        "logistic",
        {
            "hinge": "`losses.binary.hinge`",
            "exponential": "`losses.binary.exponential`",
            "ensloss": "`losses.binary.ensloss`",
        },
    ),
    Trouble(
        "Probabilities are too sure where classes overlap",
        "Networks that fit all labels of classes that overlap.",
        "calibration",
        ("nll_32_0.6", "ece_32_0.6", "nll_32_0"),
        "cross_entropy",
        {
            "temperature": "`estimators.calibration.fit_temperature`",
            "mixup": "`regularizers.mixup.mixup`",
            "mixup_4": "`regularizers.mixup.d_mixup`",
            "label_smoothing": "label smoothing of 0.1",
            "ps_kd": f"`{CLASSIFICATION}.ps_kd`",
        },
    ),
    Trouble(
        "Mixtures of two classes look like a third",
        "A class that lies between two others. The baseline is no mixup at all.",
        "mixup_intrusion",
        ("middle", "balanced_accuracy"),
        "plain",
        {
            "mixup": "`regularizers.mixup.mixup`",
            "mixup_and_examples": "`regularizers.mixup.mixup`, beside the examples as they are",
            "adamixup": "`regularizers.adaptive_mixup`",
            "no_discriminator": "`regularizers.adaptive_mixup` without `intrusion_loss`",
        },
    ),
    Trouble(
        "Inputs are attacked",
        "Networks trained on attacks, judged by stronger ones. The baseline is training on PGD.",
        "adversarial",
        ("robust", "robust_tail", "clean"),
        "pgd_at",
        {
            "trades": "TRADES",
            "smooth_comp_sum": f"`{ADVERSARIAL}.smooth_comp_sum_loss`",
            "gairat": "`weights.gairat`",
            "kl_weights": "`weights.compositional_kl_dro`",
            "doubly_robust": f"`weights.compositional_kl_dro`, `{ADVERSARIAL}.hypergradient`",
        },
    ),
    Trouble(
        "Inputs are attacked, and some classes are rare",
        "The same on a long tail.",
        "robust_long_tail",
        ("robust_rare", "robust", "robust_frequent"),
        "pgd_at",
        {
            "reweighted": "`weights.class_balanced`",
            "reweighted_focal": f"`weights.class_balanced`, `{CLASSIFICATION}.focal_loss`",
            "deferred": "`weights.deferred_class_weights`",
            "deferred_ldam": f"`weights.deferred_class_weights`, `{CLASSIFICATION}.ldam`",
            "srat": f"`{ADVERSARIAL}.batch_srat`",
            "srat_ldam": f"`{ADVERSARIAL}.batch_srat` with `{CLASSIFICATION}.ldam`",
        },
    ),
    Trouble(
        "There is little time for robust training",
        "A natural network made robust in few steps. The baseline is training on attacks from scratch for as long.",
        "robust_finetuning",
        ("robust", "clean"),
        "scratch_short",
        {
            "slow_start": "`schedules.slow_start_fast_decay`",
            "constant": "a constant rate",
            "step_decay": "a rate that falls in a step",
            "scratch_long": "from scratch, eight times as long",
        },
    ),
    Trouble(
        "A small network should be accurate and robust",
        "Distillation. The baseline has one robust teacher, the others a clean one beside it.",
        "robust_distillation",
        ("mean", "clean", "robust"),
        "one_teacher",
        {
            "fixed": "`losses.distillation.mtard_kl`, halves",
            "mtard": "`losses.distillation.batch_mtard`, `weights.normalized_loss_balance`",
            "b_mtard": "the same and `weights.entropy_balance`",
        },
    ),
    Trouble(
        "Most examples have no label",
        "A few labels a class. The baseline looks at nothing else.",
        "semi_supervised",
        ("accuracy", "test_accuracy"),
        "supervised",
        {
            "pseudo_label": "`losses.semi_supervised.pseudo_label_loss`",
            "fixmatch": "`losses.semi_supervised.fixmatch`",
            "fixmatch_aligned": "the same and `losses.semi_supervised.distribution_alignment`",
            "shrinkmatch": "`losses.semi_supervised.shrinkmatch`",
        },
    ),
    Trouble(
        "Only the means of bags are known",
        "Responses are known as means over k examples. The baseline is the loss of the bag's mean prediction.",
        "bag_labels",
        ("risk_2", "risk_5", "accuracy"),
        "bag",
        {
            "instance": "`losses.aggregate.instance_loss`",
            "interpolated": "`losses.aggregate.interpolated_loss`",
        },
    ),
    Trouble(
        "People rate on scales of their own",
        "Ratings with a spread, in data sets with scales of their own. The baseline is the nearest level.",
        "quality_scores",
        ("within", "across", "spread_error"),
        "one_hot",
        {
            "soft": "`losses.ordinal.level_kl` of `soft_level_labels`",
            "soft_and_pairs": "the same and `losses.ranking.thurstone_fidelity`",
        },
    ),
    Trouble(
        "Classes arrive one task after another",
        "Digits in tasks. The baseline goes on training.",
        "class_incremental",
        ("incremental", "old", "new"),
        "finetune",
        {
            "lwf": "`losses.continual.old_class_distillation`",
            "replay": "a memory by `losses.continual.herding`",
            "kd": "the memory and `losses.continual.distilled_cross_entropy`",
            "weight_aligning": "the same and `losses.continual.align_weights`",
            "prd": "`losses.continual.prototype_sample_relation`",
        },
    ),
    Trouble(
        "New classes come with five examples",
        "Six digits, then four more, one by one. The baseline is frozen, with class means as prototypes.",
        "few_shot_classes",
        ("harmonic_mean", "base_accuracy", "new_accuracy"),
        "frozen",
        {
            "supcon": "`losses.contrastive.supcon`",
            "simplex": "`losses.continual.etf_prototypes`",
            "rotation": "`regularizers.pseudo_classes.rotated_classes`",
            "side_task": "`losses.self_supervised.transformation_prediction`",
            "pretraining": "pre-training by `losses.contrastive.supcon` without labels",
            "calibrated": "`losses.continual.calibrate_prototypes`",
            "fine_tuning": "tuning all",
            "subnet": "tuning a part",
            "all": "all of them",
        },
    ),
    Trouble(
        "The inputs drift after training",
        "A stream that becomes blurred and noisy, in which new classes appear; no labels. The baseline does nothing.",
        "drifting_stream",
        ("accuracy_balanced", "accuracy_imbalanced", "accuracy_fast"),
        "source",
        {
            "tent": "`adapt.entropy_step` without ascent",
            "sar_no_reset": "`adapt.entropy_step` with `optim.sharpness_aware`",
            "sar": "the same and `adapt.recovery`",
            "rsgs": "`adapt.entropy_step` with the surrogate gap",
            "calibration": "`losses.continual.calibrate_prototypes`",
            "csfa": "both",
        },
    ),
    Trouble(
        "Some groups are served worse",
        "Dense prediction in groups of unequal size and difficulty.",
        "group_error_bounds",
        ("equity_scaled", "worst_group", "dice"),
        "plain",
        {
            "one_factor": "`losses.segmentation.batch_fair_error_bound`, one factor for all",
            "fair": "`losses.segmentation.batch_fair_error_bound`",
            "of_images": "the Dice loss of each image, not of the batch",
            "group_dro": "the same and `weights.group_dro`",
        },
    ),
    Trouble(
        "There are few examples, and a generator",
        "The real examples show few modes of each class. The baseline has them alone.",
        "generated_data",
        ("accuracy",),
        "real",
        {
            "same_1024": "a generator of the same modes",
            "diverse_64": "one of all modes, few examples",
            "diverse_1024": "one of all modes, many examples",
            "filtered": "the same and `weights.similarity_filter`",
        },
    ),
    Trouble(
        "There are few examples, and experts who know which factors matter",
        "Sixty patients, and the importance of the factors in strong models of other patients; with decoys, too."
        " Shuffled knowledge is the control.",
        "known_factors",
        ("rmse_factors", "rmse_decoys", "ordered_factors"),
        "plain",
        {
            "knowledge": "`regularizers.attribution.batch_factor_consistency`",
            "shuffled": "the same with shuffled knowledge",
        },
    ),
    Trouble(
        "There are very many classes",
        "Words after words. These losses need not look at every class, and their time does not grow with the number.",
        "many_classes",
        ("top_1_error", "top_5_error"),
        "cross_entropy",
        {
            "z_loss": f"`{CLASSIFICATION}.z_loss`",
            "taylor_softmax": f"`{CLASSIFICATION}.taylor_softmax_cross_entropy`",
            "spherical_softmax": f"`{CLASSIFICATION}.spherical_softmax_cross_entropy`",
        },
    ),
)


def _cell(metric: Metric, values: np.ndarray, baseline: np.ndarray) -> str:
    """The paired change with its interval, in bold where it is for the better."""
    mean, low, high = mean_interval(np.asarray(values) - np.asarray(baseline))
    scale = 100 if metric.percent else 1
    text = f"{scale * mean:+.{metric.digits}f} [{scale * low:.{metric.digits}f}, {scale * high:.{metric.digits}f}]"
    if low <= 0 <= high:
        return text
    return f"**{text}**" if (low > 0) == (metric.better == "higher") else f"*{text}*"


def _section(trouble: Trouble, folder: pathlib.Path) -> Iterator[str]:
    module = importlib.import_module(f"experiments.{trouble.experiment}")
    known: dict[str, Metric] = {metric.name: metric for metric in module.METRICS}
    metrics = [known[name] for name in trouble.metrics]
    stored = json.loads((folder / f"{trouble.experiment}.json").read_text(encoding="utf-8"))["methods"]
    plain = stored[trouble.baseline]
    yield f"## {trouble.heading}"
    anchor = f"[`experiments.{trouble.experiment}`](results.md)"
    yield f"{trouble.setting} From {anchor}, {len(plain[metrics[0].name]['values'])} seeds."
    unclear = len({metric.label for metric in metrics}) < len(metrics) or len({metric.table for metric in metrics}) > 1
    heads = [f"{metric.table}: {metric.label}" if unclear and metric.table else metric.label for metric in metrics]
    rows = ["| | in the package | " + " | ".join(heads) + " |", "|---|---" + "|---" * len(metrics) + "|"]
    levels = [
        f"{100 * plain[m.name]['mean']:.{m.digits}f} %" if m.percent else f"{plain[m.name]['mean']:.{m.digits}f}"
        for m in metrics
    ]
    rows.append(f"| {trouble.baseline} | the baseline | " + " | ".join(levels) + " |")
    for method, made_of in trouble.methods.items():
        cells = [_cell(m, stored[method][m.name]["values"], plain[m.name]["values"]) for m in metrics]
        rows.append(f"| {method} | {made_of} | " + " | ".join(cells) + " |")
    yield "\n".join(rows)


def page(folder: pathlib.Path = STORED) -> str:
    """All troubles as Markdown."""
    blocks = [OPENING.rstrip()]
    for trouble in TROUBLES:
        blocks.extend(_section(trouble, folder))
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    print(page(), end="")
