"""Well-known architectures of other libraries: gated, closed at random, compacted, compared; and how much is reached.

The whole zoo is run by benchmarks/zoo.py; these are small members of its families.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import zoo
from exactness import leaves
from zoo_models import ZOO
from zoo_models.entry import images, missing
from zoo_table import TARGET

MISSING = missing("torchvision", "timm", "transformers")
needs_libraries = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed; make .venv/.zoo installs what the zoo needs"
)

SMALL = """
    torchvision/shufflenet_v2_x1_0
    timm/tinynet_e
    timm/mobileone_s0
    timm/convnext_atto
    timm/efficientvit_b0
    timm/mobilevit_xxs
    timm/cait_xxs24_224
    transformers/bert_classifier
    transformers/gpt2
    transformers/llama
    transformers/qwen3
    transformers/t5
    transformers/whisper
    transformers/clip
    transformers/segformer
    transformers/detr
""".split()


@needs_libraries
@pytest.mark.parametrize("name", SMALL)
def test_what_is_left_of_a_known_architecture_is_exact(name: str) -> None:
    found = zoo.errors(ZOO[name])
    assert found and max(found.values()) <= TARGET, found


@needs_libraries
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0"])
def test_nearly_all_weights_of_a_known_network_can_be_removed(name: str) -> None:
    model = zoo.make(ZOO[f"torchvision/{name}"])
    sparse = zoo.sparsify(model, images(2, 0, 64))
    assert zoo.share(model, zoo.touched(sparse))["weight_share"] >= 0.9


def test_every_member_has_inputs_of_two_shapes() -> None:
    for name, entry in ZOO.items():
        first, second = (leaves(entry.inputs(2, variant)) for variant in (0, 1))
        assert [len(x) for x in first] == [2] * len(first), name
        assert [len(x) for x in second] == [3] * len(first), name


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 85 and {entry.source for entry in ZOO.values()} == {"torchvision", "timm", "transformers"}


def test_the_product_needs_none_of_the_libraries() -> None:
    """They are not among its requirements, and where torchvision does not fit torch, to look for it is to fail."""
    named = set()
    for path in (Path(__file__).parents[2] / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                named.add(str(node.module).partition(".")[0])
    assert "torch" in named
    assert not named & {"torchvision", "timm", "transformers", "tokenizers", "torch_pruning"}
