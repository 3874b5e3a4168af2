"""Losses and accuracy of a classifier, averaged over an epoch or a split."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zerogate.data import Batches, Split
from zerogate.training.scores import Scores, evaluate

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 1, 0])


def test_losses_are_means_over_batches_and_accuracy_is_over_images() -> None:
    scores = Scores(2)
    parts = (slice(0, 4), slice(4, 5))
    for part, l0 in zip(parts, (0.5, 2.0), strict=True):
        scores.update(F.cross_entropy(LOGITS[part], LABELS[part]), torch.tensor(l0), LOGITS[part], LABELS[part])
    computed = scores.compute()
    cross_entropy = sum(float(F.cross_entropy(LOGITS[part], LABELS[part])) for part in parts) / 2
    assert computed == pytest.approx(
        {"loss": cross_entropy + 1.25, "cross_entropy": cross_entropy, "l0": 1.25, "accuracy": 0.8}
    )
    scores.reset()
    scores.count(LOGITS[2:3], LABELS[2:3])
    assert scores.compute() == pytest.approx(
        {"loss": 3.0486, "cross_entropy": 3.0486, "l0": 0.0, "accuracy": 0.0}, abs=1e-4
    )


def test_an_epoch_half_way_through_is_in_the_state() -> None:
    scores, other = Scores(2), Scores(2)
    scores.count(LOGITS[:3], LABELS[:3])
    other.load_state_dict(scores.state_dict())
    for each in (scores, other):
        each.count(LOGITS[3:], LABELS[3:])
    assert other.compute() == scores.compute()
    assert {name.split(".")[0] for name in scores.state_dict()} == {"cross_entropy", "l0", "accuracy"}


def test_a_model_is_evaluated_over_the_whole_split_in_evaluation_mode() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (7, 1, 2, 2), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    batches = Batches(split, 3, (0.5,), (0.25,))
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 3)).train()
    computed = evaluate(model, batches, 3)
    assert not model.training
    with torch.no_grad():
        outputs = [(model(x), labels) for x, labels in batches]
    losses = [float(F.cross_entropy(output, labels)) for output, labels in outputs]
    right = sum(int((output.argmax(1) == labels).sum()) for output, labels in outputs)
    assert computed == pytest.approx({"loss": sum(losses) / 3, "accuracy": right / 7})
