"""Augmentation, and batches that a run can leave and go on with anywhere."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from image_sets import pixels, refuses
from zerogate.data import Augment, Batches, Split, normalize, random_crop, random_flip, random_resized_crop
from zerogate.data.decoding import channel_statistics

# --- augmentation -----------------------------------------------------------------------------------------------


def test_statistics_are_exact_and_survive_a_constant_channel() -> None:
    images = torch.from_numpy(pixels(1500)).permute(0, 3, 1, 2).contiguous()
    images[:, 2] = 7
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std[:2] == pytest.approx(scaled.std((0, 2, 3), correction=0)[:2].tolist(), rel=1e-12)
    assert std[2] == 1.0


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_normalize(format: torch.memory_format) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8).contiguous(memory_format=format)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    x = normalize(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).double().view(-1, 1, 1)) / torch.tensor(std).double().view(
        -1, 1, 1
    )
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=format)
    torch.testing.assert_close(x.double(), expected, atol=1e-6, rtol=0)


def test_random_flip_mirrors_half_of_the_images() -> None:
    x = torch.randn(2000, 2, 3, 4)
    y = random_flip(x, 0)
    same, mirrored = (y == x).all((1, 2, 3)), (y == x.flip(3)).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 900 < mirrored.sum() < 1100
    assert torch.equal(y, random_flip(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(y, random_flip(x, 1))


def test_random_crop_is_a_window_of_the_padded_image() -> None:
    x = torch.randn(500, 2, 5, 6) + 10
    y = random_crop(x, 2, 3)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for image, whole in zip(y, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(image, whole[:, i : i + 5, j : j + 6])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25
    assert torch.equal(random_crop(x, 0, 3), x)


def test_random_resized_crop_of_the_whole_is_the_identity() -> None:
    x = torch.randn(8, 3, 7, 10)
    torch.testing.assert_close(random_resized_crop(x, (1.0, 1.0), (10 / 7, 10 / 7), 0), x, atol=1e-5, rtol=0)


def test_random_resized_crop_draws_boxes_of_the_area_and_shape_asked_for() -> None:
    """On an image whose values are its own coordinates, the output tells where the box was."""
    width, height, count = 40, 30, 4000
    columns = ((torch.arange(width) + 0.5) / width).expand(height, width)
    lines = ((torch.arange(height) + 0.5) / height).unsqueeze(1).expand(height, width)
    x = torch.stack([columns, lines]).expand(count, 2, height, width)
    y = random_resized_crop(x, (0.3, 0.6), (0.8, 1.25), 5)
    # the middle of the box is linear in its coordinates, far from the border's clamping
    wide = (y[:, 0, 15, 24] - y[:, 0, 15, 15]) * width / 9
    high = (y[:, 1, 19, 20] - y[:, 1, 10, 20]) * height / 9
    area, ratio = wide * high, wide * width / (high * height)
    assert area.min() > 0.3 - 1e-3 and area.max() < 0.6 + 1e-3
    assert ratio.min() > 0.8 - 1e-2 and ratio.max() < 1.25 + 1e-2
    assert area.mean().item() == pytest.approx(0.45, abs=0.01)
    assert ratio.log().mean().item() == pytest.approx(0.0, abs=0.01)
    left = (y[:, 0, 15, 19] + y[:, 0, 15, 20]) / 2 - wide / 2
    place = left / (1 - wide)
    assert place.min() > -1e-2 and place.max() < 1 + 1e-2
    assert place.mean().item() == pytest.approx(0.5, abs=0.02)
    assert place.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)


def test_random_resized_crop_draws_again_what_does_not_fit() -> None:
    """About one box in four fits here; the others, cut to fit, would fall below the area asked for."""
    columns = ((torch.arange(32) + 0.5) / 32).expand(32, 32)
    y = random_resized_crop(torch.stack([columns, columns.T]).expand(2000, 2, 32, 32), (0.9, 1.0), (0.8, 1.25), 0)
    area = (y[:, 0, 16, 24] - y[:, 0, 16, 8]) * 2 * (y[:, 1, 24, 16] - y[:, 1, 8, 16]) * 2
    assert 0.85 < (area > 0.9 - 1e-4).float().mean() < 1.0


def test_random_resized_crop_never_leaves_the_image() -> None:
    y = random_resized_crop(torch.ones(500, 1, 8, 8), (0.9, 1.0), (0.25, 4.0), 0)
    torch.testing.assert_close(y, torch.ones_like(y))


def test_augment_composes_and_checks_its_settings() -> None:
    x = torch.randn(16, 3, 8, 8)
    assert Augment(flip=False, crop=0)(x, 0) is x
    generator = torch.Generator().manual_seed(4)
    expected = random_flip(
        random_crop(random_resized_crop(x, (0.5, 1), (0.9, 1.1), generator), 2, generator), generator
    )
    assert torch.equal(Augment(True, 2, [[0.5, 1], [0.9, 1.1]])(x, 4), expected)  # type: ignore[arg-type]
    for bad in (((0.0, 1.0), (1.0, 1.0)), ((0.5, 1.5), (1.0, 1.0)), ((0.5, 1.0), (2.0, 1.0)), (0.5, 1.0), (0.8,)):
        refuses("resized_crop is .*give", lambda bad=bad: Augment(resized_crop=bad))
    refuses("crop is -1", lambda: Augment(crop=-1))


# --- batches ----------------------------------------------------------------------------------------------------


def small(count: int = 23, channels: int = 3) -> Split:
    images = torch.from_numpy(pixels(count, channels=channels)).permute(0, 3, 1, 2)
    return Split(images, torch.arange(count))


def batches(split: Split | None = None, batch_size: int = 5, **options: Any) -> Batches:
    split = small() if split is None else split
    channels = split.images.shape[1]
    return Batches(split, batch_size, (0.5,) * channels, (0.25,) * channels, **options)


ALL = {"shuffle": True, "augment": Augment(True, 2, ((0.5, 1.0), (0.8, 1.25))), "seed": 3}


def assert_same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> None:
    assert len(a) == len(b)
    for (x, y), (u, v) in zip(a, b, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_batches_in_order_cover_the_split() -> None:
    split = small()
    it = batches(split)
    found = list(it)
    assert len(found) == len(it) == 5
    assert [len(y) for _, y in found] == [5, 5, 5, 5, 3]
    assert torch.cat([y for _, y in found]).tolist() == list(range(23))
    torch.testing.assert_close(torch.cat([x for x, _ in found]), (split.images.float() / 255 - 0.5) / 0.25)
    dropped = batches(drop_last=True)
    assert len(list(dropped)) == len(dropped) == 4


@pytest.mark.parametrize(("channels", "channels_last"), [(3, True), (3, False), (1, True)])
def test_batches_have_the_memory_format_asked_for(channels: int, channels_last: bool) -> None:
    for augment in (None, ALL["augment"]):
        for x, _ in batches(small(channels=channels), channels_last=channels_last, augment=augment):
            assert x.dtype == torch.float32
            assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_every_epoch_is_another_permutation_fixed_by_the_seed() -> None:
    it = batches(shuffle=True)
    epochs = [torch.cat([y for _, y in it]).tolist() for _ in range(3)]
    assert it.epoch == 3
    assert all(sorted(e) == list(range(23)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert torch.cat([y for _, y in batches(shuffle=True)]).tolist() == epochs[0]
    assert torch.cat([y for _, y in batches(shuffle=True, seed=1)]).tolist() != epochs[0]
    it.set_epoch(1)
    assert torch.cat([y for _, y in it]).tolist() == epochs[1]


def test_augmentation_differs_between_epochs_and_batches_but_not_between_runs() -> None:
    same = Split(
        torch.from_numpy(pixels(1)).permute(0, 3, 1, 2).expand(10, -1, -1, -1), torch.zeros(10, dtype=torch.int64)
    )
    options = {"augment": ALL["augment"]}
    it = batches(same, **options)
    (a, _), (b, _) = it
    (c, _), (d, _) = it
    assert len({x.numpy().tobytes() for x in (a, b, c, d)}) == 4
    torch.manual_seed(99)
    assert_same([(a, a), (b, b)], [(x, x) for x, _ in batches(same, **options)])


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 9, 10, 12])
def test_a_run_stopped_anywhere_goes_on_with_the_same_batches(stop: int) -> None:
    whole = batches(**ALL)
    expected = [batch for _ in range(3) for batch in whole]

    first, taken, state = batches(**ALL), [], {"epoch": 0, "batch": 0}
    for _ in range(3):
        for batch in first:
            if len(taken) < stop:
                taken.append(batch)
                state = json.loads(json.dumps(first.state_dict()))
    assert state["epoch"] * 5 + state["batch"] == stop

    second = batches(**ALL)
    second.load_state_dict(state)
    assert second.state_dict() == state
    while second.epoch < 3:
        taken += list(second)
    assert_same(taken, expected)


def test_the_state_counts_batches_handed_out() -> None:
    it = batches(shuffle=True)
    assert it.state_dict() == {"epoch": 0, "batch": 0}
    seen = [it.state_dict() for _ in it]
    assert seen == [{"epoch": 0, "batch": k} for k in range(1, 6)]
    assert it.state_dict() == {"epoch": 1, "batch": 0}


def test_an_epoch_left_early_starts_again_and_one_taken_whole_does_not() -> None:
    it = batches(shuffle=True)
    first = next(iter(it))
    assert_same([next(iter(it))], [first])
    stepper = iter(it)
    for _ in range(len(it)):
        next(stepper)  # whole, but never asked for more: how trainers that know the length do it
    assert it.state_dict() == {"epoch": 0, "batch": 5}
    assert not torch.equal(next(iter(it))[1], first[1])
    assert it.epoch == 1


def test_set_epoch_keeps_a_loaded_place_in_the_same_epoch_only() -> None:
    expected = list(batches(shuffle=True))
    it = batches(shuffle=True)
    it.load_state_dict({"epoch": 0, "batch": 3})
    it.set_epoch(0)
    assert_same(list(it), expected[3:])
    it.load_state_dict({"epoch": 0, "batch": 3})
    it.set_epoch(1)
    assert len(list(it)) == 5


def test_batches_that_cannot_be() -> None:
    refuses("batch_size is 0;", lambda: batches(batch_size=0))
    refuses("batch_size is 2.5;", lambda: batches(batch_size=2.5))  # type: ignore[arg-type]
    refuses("holds no images", lambda: batches(Split(torch.empty(0, 3, 2, 2, dtype=torch.uint8), torch.empty(0))))
    refuses("batch_size=24 with drop_last leaves no batch of 23", lambda: batches(batch_size=24, drop_last=True))
    refuses("mean has 1 and std 1 values, the images have 3", lambda: Batches(small(), 4, (0.5,), (0.5,)))
    refuses(
        "state epoch=0 batch=6 does not fit epochs of 5", lambda: batches().load_state_dict({"epoch": 0, "batch": 6})
    )
