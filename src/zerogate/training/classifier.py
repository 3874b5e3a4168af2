"""The Lightning module that trains a classifier, with or without gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerogate.data.seeds import seed_of
from zerogate.errors import ZerogateError
from zerogate.sparsified import Sparsified
from zerogate.tickets.search import TicketSearch
from zerogate.training.lr_schedules import GroupSchedule, interval
from zerogate.training.scores import Scores

MakeSchedule = Callable[[Optimizer], LRScheduler]


class DivergedError(ZerogateError):
    """The loss, or a weight, is no longer a finite number."""


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
        lr: learning rate of the weights.
        gate_lr: learning rate of the gates, which have no weight decay; None for the default of `param_groups`.
        weight_decay: weight decay of the weights.
        num_classes: number of classes.
        seed: the seed of the run.
        gate_scheduler: makes a scheduler for the gates alone; None: they follow that of the weights.

    Attributes:
        search: the `TicketSearch` of which this training is a stage, or None.
        rewinds_optimizer: whether a stage begins with the optimizer's state at the rewind point.
        last: loss, cross_entropy and l0_term of the latest step, detached, 0-dim.
        rates: learning rate of each parameter group in the latest step.
    """

    def __init__(
        self,
        model: nn.Module,
        sparse: Sparsified | None,
        optimizer: Callable[..., Optimizer],
        scheduler: MakeSchedule | None,
        lr: float,
        gate_lr: float | None,
        weight_decay: float,
        num_classes: int,
        seed: int,
        gate_scheduler: MakeSchedule | None = None,
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
        self.last: dict[str, Tensor] = {}
        self.rates: dict[str, float] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: `weights`, and `gates` if there are any."""
        if self.sparse is not None:
            return self.sparse.param_groups(lr=self.lr, gate_lr=self.gate_lr, weight_decay=self.weight_decay)
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [{"name": "weights", "params": weights, "lr": self.lr, "weight_decay": self.weight_decay}]

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedulers, as Lightning takes them."""
        optimizer = self.make_optimizer(self.parameter_groups())
        make: dict[str, MakeSchedule] = {}
        if self.make_scheduler is not None:
            make["weights"] = self.make_scheduler
        if self.make_gate_scheduler is not None and any(group["name"] == "gates" for group in optimizer.param_groups):
            make["gates"] = self.make_gate_scheduler
        if "gates" in make:
            schedules: list[LRScheduler] = [GroupSchedule(optimizer, *item) for item in make.items()]
        else:
            schedules = [make_schedule(optimizer) for make_schedule in make.values()]
        return [optimizer], [{"scheduler": schedule, "interval": interval(schedule)} for schedule in schedules]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        return self.model(x)

    def on_train_epoch_start(self) -> None:
        """Reset the scores of training; Lightning does not call this when it resumes inside an epoch."""
        self.train_scores.reset()

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Seed all that is random in the step."""
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        # Not torch.manual_seed: for every kind of device that is absent it queues the call, with a formatted stack.
        torch.default_generator.manual_seed(seed_of(self.seed, step))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed_of(self.seed, step))
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed_of(self.seed, step))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, 0-dim. Raises `DivergedError` if it is not finite."""
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
        """Restore the optimizer's state at the rewind point, for a stage of a search that asks for it."""
        if self.search is not None and self.rewinds_optimizer:
            self.search.rewind(self.trainer.optimizers[0])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's optimizer step, then that of the gates and the objective."""
        super().optimizer_step(*args, **kwargs)
        if self.search is not None:
            self.search.step()
        elif self.sparse is not None:
            self.sparse.step()

    def finish(self) -> None:
        """After the last step: close and open the gates that the target, or the end of a round, asks for."""
        if self.search is not None:
            self.search.prune()
        elif self.sparse is not None:
            self.sparse.project()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the progress of the search beside the weights."""
        if self.search is not None:
            checkpoint["search"] = self.search.progress()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the progress of the search; a ticket that is evaluated without its search gets fixed gates."""
        if self.search is not None:
            self.search.load_progress(checkpoint.get("search", {}))
            return
        fixed = checkpoint.get("search", {}).get("scale") is not None
        if fixed and self.sparse is not None and self.sparse.gate.learns:
            self.sparse.harden()

    def on_validation_epoch_start(self) -> None:
        """Reset the scores of validation."""
        self.val_scores.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score a batch, with the mask that compaction would deploy."""
        images, labels = batch
        self.val_scores.count(self.model(images), labels)

    def check_finite(self) -> None:
        """Raise `DivergedError` if a weight or gate is not finite, since such a state is not worth saving."""
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"{name} is no longer finite after step {self.global_step} (epoch {self.current_epoch + 1}): "
                    f"lower optimizer.lr={self.lr:g} or objective.weight"
                )
