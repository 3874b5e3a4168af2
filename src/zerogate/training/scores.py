"""Losses and accuracy of a classifier, averaged over an epoch or a split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from zerogate.data import Batches


class Scores(nn.Module):
    """Mean losses and accuracy over an epoch; its sums are saved in checkpoints, so that a resumed epoch keeps them.

    Accuracy is the mean over images. A loss is the mean over batches: without its check for NaN, `MeanMetric` (torchmetrics
    1.9) counts every batch once, whatever weight it is given, so that a smaller last batch counts as much as the others.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The loss is checked for NaN once a step already; torchmetrics' own check would cost another host read.
        self.cross_entropy = MeanMetric(nan_strategy="disable")
        self.l0 = MeanMetric(nan_strategy="disable")
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        for metric in (self.cross_entropy, self.l0, self.accuracy):
            metric.persistent(True)

    def update(self, cross_entropy: Tensor, l0: Tensor, output: Tensor, labels: Tensor) -> None:
        """Add a training batch: its two losses (0-dim), its logits [B, classes] and its labels [B]."""
        self.cross_entropy.update(cross_entropy, len(labels))
        self.l0.update(l0, len(labels))
        self.accuracy.update(output.argmax(1), labels)

    def count(self, output: Tensor, labels: Tensor) -> None:
        """Add a batch of an evaluation, whose L0 term is 0: its logits [B, classes] and its labels [B]."""
        cross_entropy = F.cross_entropy(output, labels)
        self.update(cross_entropy, torch.zeros_like(cross_entropy), output, labels)

    def compute(self) -> dict[str, float]:
        """`loss` = `cross_entropy` + `l0`, and `accuracy`, of all batches added since `reset`."""
        cross_entropy, l0 = float(self.cross_entropy.compute()), float(self.l0.compute())
        accuracy = float(self.accuracy.compute())
        return {"loss": cross_entropy + l0, "cross_entropy": cross_entropy, "l0": l0, "accuracy": accuracy}

    def reset(self) -> None:
        """Start from nothing."""
        for metric in (self.cross_entropy, self.l0, self.accuracy):
            metric.reset()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, num_classes: int) -> dict[str, float]:
    """`loss` (cross-entropy) and `accuracy` of a model in evaluation mode, over one pass of the batches."""
    model.eval()
    scores = Scores(num_classes).to(batches.device)
    batches.load_state_dict({"epoch": 0, "batch": 0})
    for images, labels in batches:
        scores.count(model(images), labels)
    computed = scores.compute()
    return {"loss": computed["loss"], "accuracy": computed["accuracy"]}
