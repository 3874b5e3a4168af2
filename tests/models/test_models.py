"""The networks of zerogate.models: figures, shapes, and the properties that gates and compaction rely on."""

import copy
import io
import pickle
from collections.abc import Callable
from fnmatch import fnmatch
from itertools import pairwise

import numpy
import pytest
import torch
from torch import Tensor, nn

from zerogate import models
from zerogate.errors import ZerogateError

# Factory and the shape of one example; wide networks stand in as narrow members of the same class.
Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
CASES: dict[str, Case] = {
    "googlenet": (models.googlenet, (3, 32, 32)),
    "resnet20": (models.resnet20, (3, 32, 32)),
    "lenet300": (models.lenet300, (1, 28, 28)),
    "lenet5": (models.lenet5, (1, 28, 28)),
    "wide_resnet": (lambda: models.WideResNet(depth=10, widen=2, dropout=0.3), (3, 32, 32)),
    "vgg16": (models.vgg16, (3, 32, 32)),
    "convnet": (models.convnet, (1, 8, 8)),
}
IMAGE_CASES = [name for name in CASES if name != "lenet300"]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(name: str, batch: int = 3) -> tuple[nn.Module, Tensor]:
    """The named network with random BatchNorm statistics, in eval mode, and a batch for it."""
    torch.manual_seed(0)
    factory, shape = CASES[name]
    model = factory().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model, torch.randn(batch, *shape)


def residual_params(widths: list[int], blocks: int, block: Callable[[int, int], int]) -> int:
    """Sum of ``block(c_in, c_out)`` over stages of ``blocks`` blocks that lead through ``widths``."""
    pairs = [(a if i == 0 else b, b) for a, b in pairwise(widths) for i in range(blocks)]
    return sum(block(a, b) for a, b in pairs)


def test_googlenet_has_the_published_count() -> None:
    assert count(models.googlenet()) == 260_650
    # One input channel takes two 3×3 kernels per stem filter away; 100 classes add 90 rows of 128 weights and a bias.
    assert count(models.googlenet(in_channels=1)) == 260_650 - 2 * 9 * 64
    assert count(models.googlenet(num_classes=100)) == 260_650 + 90 * 129


def test_googlenet_blocks_chain() -> None:
    """What one block hands over is what the next one takes, and all four branches are in it."""
    model = models.googlenet().eval()
    blocks = [m for m in model.modules() if isinstance(m, models.Inception)]
    assert len(blocks) == 8
    assert [b.branch1x1.conv.in_channels for b in blocks] == [64, 64, 96, 96, 96, 96, 128, 128]
    x = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        for block in blocks:
            y = block(x)
            parts = [block.branch1x1, block.branch3x3, block.branch5x5, block.branch_pool]
            assert y.shape == (2, sum(p.conv.out_channels for p in parts), 8, 8)
            assert torch.equal(y[:, : block.branch1x1.conv.out_channels], block.branch1x1(x))
            x = y


def test_every_googlenet_convolution_has_a_bias_and_a_batchnorm() -> None:
    model = models.googlenet()
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convs) == 1 + 8 * 6
    for name, conv in convs.items():
        assert conv.bias is not None
        assert isinstance(model.get_submodule(name.removesuffix("conv") + "bn"), nn.BatchNorm2d)


def test_resnet20_count_is_its_closed_form() -> None:
    def block(a: int, b: int) -> int:
        return 9 * a * b + 9 * b * b + 2 * 2 * b + (a * b if a != b else 0)

    expected = 27 * 16 + 2 * 16 + residual_params([16, 16, 32, 64], 3, block) + 64 * 10 + 10
    assert expected == 272_282
    assert count(models.resnet20()) == expected
    assert count(models.ResNet(depth=32)) == expected + residual_params([16, 16, 32, 64], 5, block) - residual_params(
        [16, 16, 32, 64], 3, block
    )


def test_resnet20_dense_by_default_names_the_shortcuts_and_the_classifier() -> None:
    model = models.resnet20()
    named = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and any(fnmatch(name, p) for p in model.dense_by_default)
    }
    assert named == {"stage2.0.shortcut", "stage3.0.shortcut", "classifier"}
    for name in named - {"classifier"}:
        shortcut = model.get_submodule(name)
        assert isinstance(shortcut, nn.Conv2d)
        assert (shortcut.kernel_size, shortcut.stride, shortcut.bias) == ((1, 1), (2, 2), None)


def assert_normal(weight: object, std: float) -> None:
    """``weight`` looks drawn from N(0, std²): its spread fits, and its tails go beyond a uniform draw's √3·std."""
    assert isinstance(weight, Tensor)
    assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert weight.abs().max().item() > 2.5 * std


def test_initial_weights() -> None:
    torch.manual_seed(0)
    resnet = models.resnet20()
    assert_normal(resnet.get_submodule("stage3.1.conv_a").weight, (2 / (9 * 64 + 9 * 64)) ** 0.5)
    assert resnet.classifier.bias.abs().max() == 0
    googlenet = models.googlenet()
    assert_normal(googlenet.get_submodule("stage3.0.branch3x3.conv").weight, (2 / (9 * 48)) ** 0.5)
    assert max(m.bias.abs().max() for m in googlenet.modules() if isinstance(m, nn.Conv2d)) == 0  # type: ignore
    wide = models.WideResNet(depth=10, widen=2)
    assert_normal(wide.get_submodule("stage3.0.conv_a").weight, (2 / (9 * 128)) ** 0.5)


def test_wrn28_10_count_is_its_closed_form() -> None:
    def block(a: int, b: int) -> int:
        return 2 * a + 9 * a * b + 2 * b + 9 * b * b + (a * b if a != b else 0)

    expected = 27 * 16 + residual_params([16, 160, 320, 640], 4, block) + 2 * 640 + 640 * 10 + 10
    assert expected == 36_479_194
    with torch.device("meta"):
        model = models.wrn28_10()
        assert count(model) == expected
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)


def test_wide_block_shortcut_sees_the_activated_input() -> None:
    torch.manual_seed(0)
    block = models.WideBlock(4, 6).eval()
    nn.init.zeros_(block.conv_b.weight)  # leaves the shortcut alone in the output
    x = torch.randn(2, 4, 5, 5)
    assert block.shortcut is not None
    assert torch.equal(block(x), block.shortcut(block.bn_a(x).relu()))
    same = models.WideBlock(4, 4).eval()
    nn.init.zeros_(same.conv_b.weight)
    assert torch.equal(same(x), x)


def test_wrn28_10_passes_its_dropout_on() -> None:
    with torch.device("meta"):
        rates = {m.p for m in models.wrn28_10(dropout=0.25).modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.25}


def test_lenet_counts() -> None:
    assert count(models.lenet300()) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10 == 266_610
    assert count(models.lenet5()) == (25 + 1) * 20 + (20 * 25 + 1) * 50 + 801 * 500 + 501 * 10 == 431_080


def test_vgg16_count_is_its_closed_form() -> None:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    expected = sum(9 * a * b + b + 2 * b for a, b in pairwise(widths)) + 512 * 10 + 10
    assert expected == 14_728_266
    with torch.device("meta"):
        assert count(models.vgg16()) == expected


def test_convnet_count_is_quadratic_in_its_width() -> None:
    def expected(w: int) -> int:
        weights = 9 * w + 9 * w * w * 3 + w * w + 9 * 2 * w * w  # stem; block and 3×3 branch; 1×1 branch; head
        return weights + 6 * 2 * w + 10 * w + 10

    assert count(models.convnet()) == expected(32) == 48_106
    assert count(models.convnet(width=8)) == expected(8)


@pytest.mark.parametrize("name", CASES)
def test_output_shape_for_any_batch_size(name: str) -> None:
    model, x = build(name)
    with torch.no_grad():
        for batch in (1, 3):
            out = model(x[:batch])
            assert out.shape == (batch, 10)
            assert out.isfinite().all()


@pytest.mark.parametrize("name", ["googlenet", "resnet20", "wide_resnet", "vgg16", "convnet"])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (33, 20)])
def test_other_image_sizes(name: str, size: tuple[int, int]) -> None:
    model, x = build(name)
    with torch.no_grad():
        assert model(torch.randn(2, x.shape[1], *size)).shape == (2, 10)


def test_image_size_and_features_set_the_first_linear_layer() -> None:
    with torch.no_grad():
        for size in (16, 28, 32):
            assert models.lenet5(in_channels=3, image_size=size)(torch.randn(2, 3, size, size)).shape == (2, 10)
        model = models.lenet300(in_features=3 * 32 * 32)
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(model(x), model(x.flatten(1)))


@pytest.mark.parametrize(
    "factory",
    [models.googlenet, models.resnet20, models.lenet5, models.vgg16, models.wrn28_10, models.convnet],
)
def test_factories_take_classes_and_channels(factory: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        for channels in (1, 3):
            model = factory(num_classes=7, in_channels=channels)
            assert model(torch.empty(2, channels, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("name", CASES)
def test_examples_of_a_batch_are_independent_in_eval(name: str) -> None:
    model, x = build(name)
    model, x = model.double(), x.double()
    with torch.no_grad():
        together = model(x)
        assert together.dtype == torch.float64
        assert (together[0] - together[1]).abs().max() > 1e-6  # the output does depend on the image
        alone = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_channels_last_gives_the_same_output(name: str) -> None:
    model, x = build(name)
    model, x = model.double(), x.double()
    with torch.no_grad():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        got = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter(name: str) -> None:
    # In eval mode: a train-mode BatchNorm takes the mean away, and with it the gradient of the bias before it.
    model, x = build(name)
    nn.functional.cross_entropy(model(x), torch.tensor([1, 2, 3])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


@pytest.mark.parametrize("name", CASES)
def test_one_training_step_changes_parameters_and_statistics(name: str) -> None:
    model, x = build(name)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model.train()(x), torch.tensor([1, 2, 3])).backward()
    optimizer.step()
    # Biases before a train-mode BatchNorm have a gradient of rounding size only, so weights and buffers are looked at.
    unchanged = [n for n, v in model.state_dict().items() if not n.endswith("bias") and torch.equal(v, before[n])]
    assert unchanged == []


@pytest.mark.parametrize("name", CASES)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    model, x = build(name, batch=1)
    with torch.no_grad():
        expected = model(x)
        clone = copy.deepcopy(model)
        assert torch.equal(clone(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        fresh = CASES[name][0]().eval()
        assert not torch.equal(fresh(x), expected)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(fresh(x), expected)
        next(clone.parameters()).add_(1.0)
        assert torch.equal(model(x), expected)  # the copy shares nothing with the original


@pytest.mark.parametrize("name", CASES)
def test_no_parameter_is_shared_and_no_module_is_used_twice(name: str) -> None:
    """Gates hook modules by name; a module that ran twice in one forward would be two places under one name."""
    model, x = build(name, batch=1)
    calls: dict[str, int] = {}
    for module_name, module in model.named_modules():
        if not any(True for _ in module.children()):
            calls[module_name] = 0

            def hook(_module: nn.Module, _inputs: object, _output: object, key: str = module_name) -> None:
                calls[key] += 1

            module.register_forward_hook(hook)
    with torch.no_grad():
        model(x)
    assert set(calls.values()) == {1}
    assert len(list(model.named_parameters(remove_duplicate=False))) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.googlenet(num_classes=0), "^num_classes must be a whole number of at least 1, got 0$"),
        (lambda: models.resnet20(num_classes=-3), "num_classes must be a whole number of at least 1, got -3"),
        (lambda: models.vgg16(num_classes=True), "num_classes must be a whole number of at least 1, got True"),
        (lambda: models.convnet(num_classes="ten"), "num_classes must be a whole number of at least 1, got 'ten'"),  # type: ignore[arg-type]
        (lambda: models.wrn28_10(num_classes=2.5), r"num_classes must be a whole number of at least 1, got 2\.5"),  # type: ignore[arg-type]
        (lambda: models.lenet5(num_classes=0), "num_classes must be a whole number of at least 1, got 0"),
        (lambda: models.lenet300(num_classes=0), "num_classes must be a whole number of at least 1, got 0"),
        (lambda: models.googlenet(in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: models.resnet20(in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: models.vgg16(in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: models.lenet5(in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: models.wrn28_10(in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: models.convnet(in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: models.convnet(width=0), "width must be a whole number of at least 1, got 0"),
        (lambda: models.lenet300(in_features=0), "in_features must be a whole number of at least 1, got 0"),
        (lambda: models.lenet5(image_size=15), "image_size is 15; .*16×16"),
        (lambda: models.ResNet(depth=21), r"depth is 21; pass 6·n \+ 2, such as 20 or 26"),
        (lambda: models.WideResNet(depth=30), r"depth is 30; pass 6·n \+ 4, such as 28 or 34"),
        (lambda: models.WideResNet(depth=4), "^depth must be a whole number of at least 10, got 4$"),
        (lambda: models.WideResNet(widen=0), "widen must be a whole number of at least 1, got 0"),
        (lambda: models.wrn28_10(dropout=1.0), r"dropout must be a probability .*, got 1\.0"),
        (lambda: models.wrn28_10(dropout=float("nan")), "dropout must be a probability .*, got nan"),
        (lambda: models.wrn28_10(dropout="half"), "dropout must be a probability .*, got 'half'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named_in_one_line(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ZerogateError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_numpy_integers_are_whole_numbers() -> None:
    assert models.convnet(num_classes=numpy.int64(4)).classifier.out_features == 4  # type: ignore[arg-type]


def test_convnet_separates_simple_images() -> None:
    """A few steps suffice to tell four directions of a bar apart: forward, backward and BatchNorm work together."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(16)
    images = 0.1 * torch.randn(64, 1, 8, 8)
    for label in range(4):
        # Directions, not positions: global pooling forgets where a pattern lies.
        bar = [(0, 1), (1, 0), (1, 1), (1, -1)][label]
        for step in range(-3, 4):
            images[labels == label, 0, 4 + step * bar[0], 4 + step * bar[1]] += 1.0
    model = models.convnet(num_classes=4, width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.95
