"""Lightning's side of training: a module for classifiers with or without gates, and the data that it trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from zerogate.data import Augment, Batches, ImageData
from zerogate.errors import ZerogateError
from zerogate.tickets.search import TicketSearch
from zerogate.training.lr_schedules import Apart, interval


class DivergedError(ZerogateError):
    """The loss, or a weight, is no longer a finite number."""


def seed_of(seed: int, step: int) -> int:
    """A seed for one step of a run: 64 bits that share nothing with those of the neighbouring steps and seeds."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest(), "little")


class Scores(nn.Module):
    """Mean losses and accuracy over an epoch; its sums are saved in checkpoints, so that a resumed epoch keeps them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The loss is checked for NaN once a step already; torchmetrics' own check would cost another host read.
        self.cross_entropy = MeanMetric(nan_strategy="disable")
        self.l0 = MeanMetric(nan_strategy="disable")
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        for metric in (self.cross_entropy, self.l0, self.accuracy):
            metric.persistent(True)

    def update(self, cross_entropy: Tensor, l0: Tensor, output: Tensor, labels: Tensor) -> None:
        """Count a batch: its two 0-dim losses, its logits [B, classes] and its labels [B]."""
        self.cross_entropy.update(cross_entropy, len(labels))
        self.l0.update(l0, len(labels))
        self.accuracy.update(output.argmax(1), labels)

    def count(self, output: Tensor, labels: Tensor) -> None:
        """Count a batch of an evaluation, which has no L0 term."""
        cross_entropy = F.cross_entropy(output, labels)
        self.update(cross_entropy, torch.zeros_like(cross_entropy), output, labels)

    def compute(self) -> dict[str, float]:
        """`loss`, `cross_entropy`, `l0` and `accuracy` of what was counted since `reset`."""
        cross_entropy, l0 = float(self.cross_entropy.compute()), float(self.l0.compute())
        accuracy = float(self.accuracy.compute())
        return {"loss": cross_entropy + l0, "cross_entropy": cross_entropy, "l0": l0, "accuracy": accuracy}

    def reset(self) -> None:
        """Forget everything counted."""
        for metric in (self.cross_entropy, self.l0, self.accuracy):
            metric.reset()


class Classifier(pl.LightningModule):
    """Trains `model` by cross-entropy plus, where it has gates, their L0 term.

    All that is random in a step (gate draws, dropout) follows from the run's seed and the step's number, so that a run
    that is stopped and resumed goes through the same steps as one that is not.

    Args:
        model: maps images [B, C, H, W] to logits [B, num_classes]; gated already if `sparse` is given.
        sparse: the handle of `zerogate.sparsify`, or None for a dense network.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes a learning-rate scheduler from the optimizer, stepped once an epoch unless its `interval` is
            `step`; or None.
        gate_scheduler: the same for the gates alone; None where they follow that of the weights.
        lr, weight_decay: of the weights. gate_lr: of the gates, which never decay; None for the default of `param_groups`.
        num_classes: number of classes.
        seed: the run's.

    Attributes:
        search: the `TicketSearch` of which this training is a stage, or None.
        rewinds_optimizer: whether a stage begins with the optimizer's state of the rewind point.
    """

    def __init__(
        self,
        model: nn.Module,
        sparse: Any | None,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        lr: float,
        gate_lr: float | None,
        weight_decay: float,
        num_classes: int,
        seed: int,
        gate_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.sparse = sparse
        self.search: TicketSearch | None = None
        self.rewinds_optimizer = False
        self.make_optimizer = optimizer
        self.make_scheduler, self.make_gate_scheduler = scheduler, gate_scheduler
        self.lr, self.gate_lr, self.weight_decay, self.seed = lr, gate_lr, weight_decay, seed
        self.train_scores = Scores(num_classes)
        self.val_scores = Scores(num_classes)
        self.last: dict[str, Tensor] = {}  # the latest step's loss, cross_entropy and l0_term, detached
        self.rates: dict[str, float] = {}  # learning rate of each parameter group in the latest step

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: `weights`, and `gates` if there are any."""
        if self.sparse is not None:
            return self.sparse.param_groups(lr=self.lr, gate_lr=self.gate_lr, weight_decay=self.weight_decay)
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [{"name": "weights", "params": weights, "lr": self.lr, "weight_decay": self.weight_decay}]

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedulers that there are."""
        optimizer = self.make_optimizer(self.parameter_groups())
        make: dict[str, Callable[[Optimizer], LRScheduler]] = {}
        if self.make_scheduler is not None:
            make["weights"] = self.make_scheduler
        if self.make_gate_scheduler is not None and any(group["name"] == "gates" for group in optimizer.param_groups):
            make["gates"] = self.make_gate_scheduler
        if "gates" in make:
            schedules: list[LRScheduler] = [Apart(optimizer, name, made) for name, made in make.items()]
        else:
            schedules = [made(optimizer) for made in make.values()]
        return [optimizer], [{"scheduler": schedule, "interval": interval(schedule)} for schedule in schedules]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        return self.model(x)

    def on_train_epoch_start(self) -> None:
        """Count anew; not called when an epoch is resumed in its middle."""
        self.train_scores.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        # Not torch.manual_seed: for every kind of device that is absent it queues the call, with a formatted stack.
        torch.default_generator.manual_seed(seed_of(self.seed, step))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed_of(self.seed, step))
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed_of(self.seed, step))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch; raises `DivergedError` when it is not finite."""
        images, labels = batch
        output = self.model(images)
        cross_entropy = F.cross_entropy(output, labels)
        l0 = cross_entropy.new_zeros(()) if self.sparse is None else self.sparse.loss()
        loss = cross_entropy + l0
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became {float(loss.detach())} at step {self.global_step + 1} "
                f"(epoch {self.current_epoch + 1}): lower optimizer.lr={self.lr:g} or objective.weight"
            )
        self.last = {"loss": loss.detach(), "cross_entropy": cross_entropy.detach(), "l0_term": l0.detach()}
        self.rates = {group["name"]: group["lr"] for group in self.trainer.optimizers[0].param_groups}
        self.train_scores.update(self.last["cross_entropy"], self.last["l0_term"], output.detach(), labels)
        return loss

    def on_train_start(self) -> None:
        """Give a stage of a search the optimizer's state of the rewind point, if it asks for that."""
        if self.search is not None and self.rewinds_optimizer:
            self.search.rewind(self.trainer.optimizers[0])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's optimizer step, then the gates' (the temperature of a soft mask)."""
        super().optimizer_step(*args, **kwargs)
        if self.search is not None:
            self.search.step()
        elif self.sparse is not None:
            self.sparse.step()

    def finish(self) -> None:
        """Behind the last step: close and open what the target, or the end of a round, asks for."""
        if self.search is not None:
            self.search.prune()
        elif self.sparse is not None:
            self.sparse.project()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the search stands beside the weights."""
        if self.search is not None:
            checkpoint["search"] = self.search.progress()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the search, and the gates if they do not learn any more, where they were."""
        if self.search is not None:
            self.search.load_progress(checkpoint.get("search", {}))
            return
        hard = checkpoint.get("search", {}).get("scale") is not None
        if hard and self.sparse is not None and self.sparse.gate.learns:  # a ticket, to be evaluated
            self.sparse.harden()

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.val_scores.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count a batch, with the mask that compaction would deploy."""
        images, labels = batch
        self.val_scores.count(self.model(images), labels)

    def check_finite(self) -> None:
        """Raise `DivergedError` if any weight or gate is not finite: such a state is not worth saving."""
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"{name} is no longer finite after step {self.global_step} (epoch {self.current_epoch + 1}): "
                    f"lower optimizer.lr={self.lr:g} or objective.weight"
                )


class _Epochs:
    """Batches whose place is the trainer's own: the epoch it is in, and how many of its batches it has done."""

    def __init__(self, batches: Batches, place: Callable[[], tuple[int, int]]) -> None:
        self.batches, self.place = batches, place

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, batch = self.place()
        self.batches.load_state_dict({"epoch": epoch, "batch": batch})
        yield from self.batches


class ImageDataModule(pl.LightningDataModule):
    """The three splits of an `ImageData` as batches on `device`; only the training split is shuffled and augmented."""

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        eval_batch_size: int,
        augment: Augment | None = None,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.data = data
        shared: dict[str, Any] = {"mean": data.mean, "std": data.std, "device": device, "channels_last": channels_last}
        self.train = Batches(
            data.train, batch_size, shuffle=True, drop_last=drop_last, augment=augment, seed=seed, **shared
        )
        self.validation = Batches(data.validation, eval_batch_size, **shared)
        self.test = Batches(data.test, eval_batch_size, **shared)

    def _place(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def train_dataloader(self) -> _Epochs:
        """The training batches, from wherever the trainer stands."""
        return _Epochs(self.train, self._place)

    def val_dataloader(self) -> _Epochs:
        """The validation batches, in order."""
        return _Epochs(self.validation, lambda: (0, 0))

    def examples(self, count: int = 4) -> Tensor:
        """Up to `count` validation images [count, C, H, W], normalised, to watch a model with."""
        self.validation.load_state_dict({"epoch": 0, "batch": 0})
        images, _ = next(iter(self.validation))
        return images[:count]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, num_classes: int) -> dict[str, float]:
    """`loss` (cross-entropy) and `accuracy` of `model` in evaluation mode over one pass of `batches`."""
    model.eval()
    scores = Scores(num_classes).to(batches.device)
    batches.load_state_dict({"epoch": 0, "batch": 0})
    for images, labels in batches:
        scores.count(model(images), labels)
    computed = scores.compute()
    return {"loss": computed["loss"], "accuracy": computed["accuracy"]}
