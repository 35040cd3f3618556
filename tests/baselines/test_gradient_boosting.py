"""Gradient boosting on token counts: its features by hand, and that it learns from them."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from ehrmamba_hf.baselines import ExampleCounts, count_examples, fit_predict
from ehrmamba_hf.baselines.gradient_boosting import MIN_LEAF
from ehrmamba_hf.errors import InputError

SPECIAL, VOCABULARY = 4, 10


def made(count: int, seed: int) -> ExampleCounts:
    """Sequences whose token 7 decides the label; token 9 occurs in five examples only."""
    generator = np.random.default_rng(seed)
    labels = generator.random(count) < 0.3
    examples = []
    for index, label in enumerate(labels):
        body = list(generator.integers(SPECIAL, 7, size=12)) + [7] * int(label)
        body += [9] * (index < 5)
        examples.append(([1, *body, 2], [0.0, *[50.0] * len(body), 0.0], [0, *[1] * len(body), 0]))
    return count_examples(examples, labels, special_tokens=SPECIAL, vocab_size=VOCABULARY)


def test_counts_and_ages_by_hand():
    # [task] [VS] 4 9 9 [VE] [interval] [VS] 4 [task]: special ids are 0 to 3.
    ids = [1, 2, 4, 9, 9, 3, 0, 2, 4, 1]
    ages = [0.0, 61.0, 61.1, 61.1, 61.2, 61.3, 0.0, 62.5, 62.6, 0.0]
    orders = [0, 1, 1, 1, 1, 1, 0, 2, 2, 0]
    result = count_examples([(ids, ages, orders)], [True], special_tokens=4, vocab_size=10)
    assert result.counts.toarray().tolist() == [[2, 0, 0, 0, 0, 2]]
    assert result.ages == pytest.approx(np.array([[61.0, 62.5]]))
    assert result.counts.dtype == np.float32


def test_an_input_without_a_visit_has_no_age():
    result = count_examples([([1], [0.0], [0])], [False], special_tokens=4, vocab_size=10)
    assert np.isnan(result.ages).all()
    assert result.counts.nnz == 0


def test_token_outside_the_vocabulary_is_an_error():
    with pytest.raises(InputError, match="example 0: expected ids from 0 to 9, found 4 to 10"):
        count_examples([([4, 10], [1, 1], [1, 1])], [True], special_tokens=4, vocab_size=10)


def test_examples_and_labels_must_agree():
    with pytest.raises(InputError, match="found 2 for 1"):
        count_examples([([4], [1], [1])], [True, False], special_tokens=4, vocab_size=10)


def test_learns_the_token_that_decides():
    train, test = made(300, seed=0), made(200, seed=1)
    predicted = fit_predict(train, test)
    assert predicted[test.labels].min() > 0.9
    assert predicted[~test.labels].max() < 0.1


def test_test_labels_are_not_read():
    train, test = made(300, seed=0), made(50, seed=1)
    flipped = replace(test, labels=~test.labels)
    assert np.array_equal(fit_predict(train, test), fit_predict(train, flipped))


def test_leaving_out_rare_tokens_changes_no_prediction():
    train, test = made(300, seed=0), made(50, seed=1)
    whole = HistGradientBoostingClassifier(
        min_samples_leaf=MIN_LEAF, early_stopping=False, random_state=0
    )
    whole.fit(np.hstack([train.counts.toarray(), train.ages]), train.labels)
    expected = whole.predict_proba(np.hstack([test.counts.toarray(), test.ages]))[:, 1]
    assert 0 < np.count_nonzero(train.counts.toarray()[:, -1]) < MIN_LEAF
    assert np.array_equal(fit_predict(train, test), expected)


@pytest.mark.parametrize(("label", "expected"), [(False, 0.0), (True, 1.0)])
def test_one_class_gives_its_rate(label, expected):
    train = replace(made(30, seed=0), labels=np.full(30, label))
    assert fit_predict(train, made(5, seed=1)).tolist() == [expected] * 5


def test_no_examples():
    empty = count_examples([], [], special_tokens=4, vocab_size=10)
    assert fit_predict(empty, made(3, seed=1)).tolist() == [0.0] * 3
    assert fit_predict(made(100, seed=0), empty).tolist() == []
