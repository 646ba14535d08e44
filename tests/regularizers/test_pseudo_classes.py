import jax
import numpy as np
import pytest

from reweight.regularizers import mixup, pseudo_classes

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(6, 4, 4, 2)).astype(np.float32), np.array([0, 1, 2, 2, 0, 1])


def test_every_turn_is_a_class():
    images, labels = pseudo_classes.rotated_classes(IMAGES, LABELS, num_classes=3)
    for turn in range(4):
        np.testing.assert_array_equal(images[:, turn], np.rot90(IMAGES, turn, (1, 2)))
        np.testing.assert_array_equal(labels[:, turn], LABELS + 3 * turn)
    assert len(np.unique(labels)) == 12


def test_a_turned_image_has_the_turns_of_the_upright_one_further_on():
    upright = pseudo_classes.rotated_classes(IMAGES, LABELS, num_classes=3).inputs
    turned = pseudo_classes.rotated_classes(np.rot90(IMAGES, 1, (1, 2)), LABELS, num_classes=3).inputs
    np.testing.assert_array_equal(turned, np.roll(upright, -1, axis=1))


def test_what_has_no_label_gets_none():
    labels = pseudo_classes.rotated_classes(IMAGES, np.array([-1, 3, 0, 1, 2, 2]), num_classes=3).labels
    np.testing.assert_array_equal(labels[:2], -1)
    assert np.all(np.asarray(labels[2:]) >= 0)


def test_every_pair_of_classes_is_one_class_whichever_weighs_more():
    classes = 5
    pairs = [(a, b) for a in range(classes) for b in range(a + 1, classes)]
    labels = np.arange(classes)
    found = set()
    for a, b in pairs:
        partners = np.array([[a, b], [b, a], [a, a], [b, b], [a, 99]])
        mixture = mixup.Mixture(partners, np.full((5, 2), 0.5, np.float32))
        came = pseudo_classes.mixed_classes(np.eye(5, dtype=np.float32), labels, mixture, num_classes=classes).labels
        assert came[0] == came[1]
        np.testing.assert_array_equal(came[2:], -1)
        found.add(int(came[0]))
    assert found == set(range(classes, classes + len(pairs)))


def test_inputs_are_those_of_mixup():
    mixture = mixup.draw_mixture(jax.random.key(0), 6, alpha=20.0, per_example=True)
    came = pseudo_classes.mixed_classes(IMAGES, LABELS, mixture, num_classes=3)
    np.testing.assert_array_equal(came.inputs, mixup.mix(IMAGES, mixture))
    same = LABELS[np.asarray(mixture.partners[:, 1])] == LABELS
    np.testing.assert_array_equal(np.asarray(came.labels) == -1, same)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: pseudo_classes.rotated_classes(IMAGES[:, :3], LABELS, num_classes=3), "images"),
        (lambda: pseudo_classes.rotated_classes(IMAGES, LABELS[:2], num_classes=3), "labels"),
        (lambda: pseudo_classes.rotated_classes(IMAGES, LABELS, num_classes=0), "num_classes"),
        (
            lambda: pseudo_classes.mixed_classes(
                IMAGES, LABELS, mixup.draw_mixture(jax.random.key(0), 6, d=3), num_classes=3
            ),
            "mixture.partners",
        ),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
