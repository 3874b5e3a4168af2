"""What is loaded, and when."""

import subprocess
import sys


def test_core_needs_neither_lightning_nor_hydra():
    code = (
        "import sys, zerogate, zerogate.bench;"
        "heavy = {'pytorch_lightning', 'hydra', 'omegaconf', 'rich', 'datasets', 'torchmetrics'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_loads_lightning_only_to_train():
    code = (
        "import sys; from zerogate.cli.main import main; main(['train', 'model=nope']);"
        "print(sorted({'pytorch_lightning', 'tensorboard', 'torchmetrics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "unknown model 'nope'" in done.stderr
