"""The data that a Lightning trainer trains on."""

from __future__ import annotations

import pytest
import torch

from zerogate.data import ImageData, Split
from zerogate.training.datamodule import ImageDataModule


@pytest.fixture
def module() -> ImageDataModule:
    images = torch.arange(10 * 4, dtype=torch.uint8).view(10, 1, 2, 2)
    split = Split(images, torch.arange(10))
    return ImageDataModule(ImageData("ten", split, split, split, 10, (0.5,), (0.25,)), 4, 6, seed=3)


def test_training_goes_on_from_the_trainers_position(module: ImageDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    position = [(1, 0)]
    monkeypatch.setattr(module, "_position", lambda: position[0])
    loader = module.train_dataloader()
    assert len(loader) == 3
    epoch = [labels.tolist() for _, labels in loader]
    order = [label for batch in epoch for label in batch]
    assert sorted(order) == list(range(10)) and order != list(range(10))  # shuffled
    position[0] = (1, 2)
    assert [labels.tolist() for _, labels in loader] == epoch[2:]
    position[0] = (2, 0)
    assert [labels.tolist() for _, labels in loader] != epoch


def test_validation_is_in_order_and_always_whole(module: ImageDataModule) -> None:
    loader = module.val_dataloader()
    for _ in range(2):
        assert [labels.tolist() for _, labels in loader] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_examples_are_the_first_validation_images(module: ImageDataModule) -> None:
    x, _ = next(iter(module.validation))
    assert torch.equal(module.examples(), x[:4]) and torch.equal(module.examples(2), x[:2])


def test_without_a_trainer_there_is_no_position(module: ImageDataModule) -> None:
    with pytest.raises(RuntimeError, match=r"Trainer\.fit"):
        next(iter(module.train_dataloader()))
