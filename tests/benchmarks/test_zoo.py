"""Well-known architectures of other libraries: gated, closed at random, compacted, compared; and how much is reached.

The whole zoo is run by benchmarks/zoo.py; these are small members of its families.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import zoo
from exactness import leaves
from reach import share, touched
from zoo_models import ZOO
from zoo_models.entry import images, missing
from zoo_table import TARGET

MISSING = missing("torchvision", "timm", "transformers", "diffusers", "peft")
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
    diffusers/stable_diffusion_unet
    diffusers/dit
    diffusers/autoencoder_kl
    peft/lora_llama
    peft/lora_bert
    ultralytics/yolov8n
    ultralytics/yolo11n
""".split()


@needs_libraries
@pytest.mark.parametrize("name", SMALL)
def test_what_is_left_of_a_known_architecture_is_exact(name: str) -> None:
    if lacking := missing(ZOO[name].source):
        pytest.skip(f"{', '.join(lacking)} not installed; make zoo installs what the whole zoo needs")
    found = zoo.errors(ZOO[name])
    assert found and max(found.values()) <= TARGET, found


@needs_libraries
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0"])
def test_nearly_all_weights_of_a_known_network_can_be_removed(name: str) -> None:
    model = zoo.make(ZOO[f"torchvision/{name}"])
    sparse = zoo.sparsify(model, images(2, 0, 64))
    assert share(model, touched(sparse))["weight_share"] >= 0.9


def test_every_member_has_inputs_of_two_shapes() -> None:
    for name, entry in ZOO.items():
        first, second = (leaves(entry.inputs(2, variant)) for variant in (0, 1))
        assert len(first) == len(second) and (not first or (2 in map(len, first) and 3 in map(len, second))), name


def test_the_zoo_is_large() -> None:
    sources = Counter(entry.source for entry in ZOO.values())
    assert sources.keys() == {"torchvision", "timm", "transformers", "ultralytics", "diffusers", "peft"}
    assert len(ZOO) >= 250 and sources["ultralytics"] >= 9


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
    assert not named & {"torch_kirigami", "ultralytics", "diffusers", "peft"}
