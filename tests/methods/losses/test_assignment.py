"""Statistics of soft assignments, on assignments made by hand."""

import math

import torch

from densesiam.methods.losses.assignment import assignment_statistics, label_counts
from tests.tolerance import about


def test_label_counts():
    labels = torch.tensor([[[0, 2], [2, 2]], [[1, 1], [0, 3]], [[3, 3], [3, 3]]])
    assert label_counts(labels, 5, torch.tensor([True, True, False])).tolist() == [2, 2, 3, 1, 0]
    assert label_counts(labels, 5, torch.tensor([0.5, 0.0, 2.0])).tolist() == [1, 0, 3, 4, 0]


def logits(labels, confidence):
    """Logits of 4 categories whose softmax gives each pixel's label this probability."""
    rest = math.log((1 - confidence) / 3)
    z = torch.full((*labels.shape, 4), rest)
    z.scatter_(-1, labels[..., None], math.log(confidence))
    return z.movedim(-1, 1) + 5  # softmax ignores the constant


def test_statistics():
    labels1 = torch.tensor([[[0, 0, 1, 1]], [[3, 3, 3, 3]]])
    labels2 = torch.tensor([[[0, 1, 1, 1]], [[2, 2, 2, 2]]])
    z1, z2 = logits(labels1, 0.7), logits(labels2, 0.4)
    result = assignment_statistics(z1, z2, torch.tensor([True, False]))

    histogram = [3 / 8, 5 / 8]
    perplexity = math.exp(-sum(h * math.log(h) for h in histogram))
    assert result["usage_perplexity"].item() == about(perplexity, terms=8)
    assert result["usage_share"] == 2 / 4
    assert result["confidence"].item() == about((0.7 + 0.4) / 2, terms=8)
    entropies = [-c * math.log(c) - (1 - c) * math.log((1 - c) / 3) for c in (0.7, 0.4)]
    assert result["entropy"].item() == about(sum(entropies) / 2, terms=8 * 4)
    assert result["agreement"] == 3 / 4


def test_perplexity_of_even_use_is_the_number_of_categories():
    z = logits(torch.arange(4).view(1, 2, 2), 0.9)
    result = assignment_statistics(z, z, torch.ones(1))
    assert result["usage_perplexity"].item() == about(4, terms=8)
    assert result["usage_share"] == 1
    assert result["agreement"] == 1


def test_statistics_without_any_pair_are_finite():
    z = torch.randn(2, 4, 3, 3)
    assert all(s.isfinite() for s in assignment_statistics(z, z, torch.zeros(2)).values())
