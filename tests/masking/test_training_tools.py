"""What runs around a gated model still does: compilers, mixed precision, checkpoints, averages, processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import zerogate as zg
from gated_networks import X
from support import Residual


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "options", [{}, {"gate": zg.SoftMask()}, {"unit": "weight"}, {"gate": zg.SoftMask(), "unit": "weight"}]
)
def test_compiled_without_a_graph_break(options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x, **copy.deepcopy(options))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = []
    for run in (model, compiled):
        sparse.logits.grad = None
        torch.manual_seed(1)
        loss = run(x).square().sum() + sparse.loss()
        loss.backward()
        results.append((loss.detach(), sparse.logits.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_mixed_precision(kind: torch.dtype, unit: Any) -> None:
    """Gradients are those of the full precision, as far as the lower one can tell."""
    grads = []
    for low in (False, True):
        torch.manual_seed(0)
        model, x = Residual(), torch.randn(X)
        sparse = zg.sparsify(model, x, unit=unit)
        torch.manual_seed(1)
        with torch.autocast("cpu", kind, enabled=low):
            loss = model(x).float().square().mean() + sparse.loss()
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in (sparse.logits, *model.parameters())]))
        assert sparse.logits.grad.dtype == torch.float32
    assert F.cosine_similarity(*grads, dim=0) > 0.99


def test_a_model_in_bfloat16() -> None:
    for unit in ("channel", "weight"):
        model, x = Residual().bfloat16(), torch.randn(X, dtype=torch.bfloat16)
        sparse = zg.sparsify(model, x, unit=unit)  # type: ignore[arg-type]
        (model(x).float().square().mean() + sparse.loss()).backward()
        assert sparse.logits.grad is not None
        assert sparse.logits.grad.isfinite().all()


def test_accumulated_gradients_are_the_sum() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, *X)
    sparse = zg.sparsify(model, x[0], gate=zg.SoftMask())
    learned = [sparse.logits, *model.parameters()]
    model.norm.eval()
    for part in x:
        (model(part).square().sum() + sparse.loss()).backward()
    grads = [p.grad for p in learned]
    whole = sum(model(part).square().sum() for part in x) + 2 * sparse.loss()
    for a, b in zip(grads, torch.autograd.grad(whole, learned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask()])
def test_a_checkpointed_model_draws_the_same_again(gate: zg.Gate, unit: Any) -> None:
    grads = []
    for saves in (False, True):
        torch.manual_seed(0)
        model, x = Residual(), torch.randn(X)
        sparse = zg.sparsify(model, x, gate=copy.deepcopy(gate), unit=unit)
        torch.manual_seed(1)
        out = checkpoint(model, x, use_reentrant=False) if saves else model(x)
        (out.square().sum() + sparse.loss()).backward()
        grads.append([p.grad for p in (sparse.logits, *model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_an_average_of_a_gated_model() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.Adam(sparse.param_groups(1e-2))
    for _ in range(4):
        (model(x).square().sum() + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
    assert ema.eval()(x).isfinite().all()
    assert not torch.equal(ema.module.head.weight, model.head.weight)


def test_parameters_of_a_functional_call_get_their_gradients() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(X)
    zg.sparsify(model, x)
    other = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, other, (x,)).square().sum().backward()
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(other[name].grad, p.grad)


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
import zerogate as zg

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)

class Both(nn.Module):
    def __init__(self, model, sparse):
        super().__init__()
        self.model, self.sparse = model, sparse
    def forward(self, x):
        return self.model(x), self.sparse.loss()

torch.manual_seed(0)
model = zg.models.convnet()
sparse = zg.sparsify(model, torch.randn(2, 1, 8, 8))
both = nn.parallel.DistributedDataParallel(Both(model, sparse))
optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-3, gate_lr=0.1))
torch.manual_seed(1 + rank)
differ = 0
for step in range(50):
    x, y = torch.randn(4, 1, 8, 8), torch.randint(10, (4,))
    drawn = []
    hook = model.register_forward_pre_hook(lambda *_: drawn.append([w.detach() for w in sparse._forward._drawn.masked]))
    out, penalty = both(x)
    hook.remove()
    mine = torch.cat([(w / sparse.model.get_parameter(n)).flatten() for n, w in zip(sparse._layout.names, drawn[0])])
    all_ = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(all_, mine)
    differ += not torch.equal(*all_)
    (F.cross_entropy(out, y) + penalty).backward()
    optimizer.step()
    optimizer.zero_grad()
    sparse.step()
state = torch.cat([sparse.logits.detach(), *(p.detach().flatten() for p in model.parameters())])
all_ = [torch.empty_like(state) for _ in range(2)]
dist.all_gather(all_, state)
assert torch.equal(*all_), "the gates have drifted apart"
assert differ == 50, differ
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads do not always outlive the interpreter's own end: "terminate called"
"""


def test_two_processes_share_gates_and_draw_their_own(tmp_path: Path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(rank), str(tmp_path / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
