"""Products with parameters and of activations: vectors, einsum of any number of operands, pairs of channels, bags."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from rule_checks import Net, check_rule, parameter, refused

X = torch.randn(2, 5, 4)

SCORES = {
    "product": lambda m, x: x @ m.v,
    "matrix of one column": lambda m, x: (x @ m.v[:, None])[..., 0],
    "mv": lambda m, x: torch.stack([torch.mv(row, m.v) for row in x]),
    "linear": lambda m, x: F.linear(x, m.v),
    "einsum": lambda m, x: torch.einsum("bnd,d->bn", x, m.v),
    "einsum with dots": lambda m, x: torch.einsum("...d,d->...", x, m.v),
    "inner": lambda m, x: torch.inner(x, m.v),
    "tensordot": lambda m, x: torch.tensordot(x, m.v, 1),
    "sum": lambda m, x: (x * m.v).sum(-1),
    "sum of a moved product": lambda m, x: torch.relu(m.v * x).transpose(1, 2).sum(1),
    "sum of a product of three": lambda m, x: (m.v[None, None] * x * x.tanh()).sum(dim=-1),
    "from the left": lambda m, x: m.v @ x.mT,
    "dot": lambda m, x: torch.stack([torch.dot(x[0, i], m.v) for i in range(5)]).expand(2, 5),
}


@pytest.mark.parametrize("score", SCORES)
def test_a_vector_is_a_layer_with_one_output(score: str) -> None:
    model = Net(
        lambda m, x: m.head((y := m.a(x).relu()) * SCORES[score](m, y).tanh()[..., None]),
        a=nn.Linear(4, 8),
        v=parameter(8),
        head=nn.Linear(8, 3),
    )
    sparse = check_rule(model, X, units={"a": 8}, witness=False)
    assert sparse.compact().v.shape == (sparse.kept().sum(),)


def test_a_sum_of_what_no_parameter_multiplies_says_so() -> None:
    for mix in (
        lambda m, y: (y * m.v + 1).sum(-1),
        lambda m, y: (y + m.v).sum(-1),
        lambda m, y: (y * m.v).exp().sum(-1),
    ):
        model = Net(
            lambda m, x, mix=mix: m.head((y := m.a(x)) * mix(m, y)[..., None]),
            a=nn.Linear(4, 8),
            v=parameter(8),
            head=nn.Linear(8, 3),
        )
        assert "sum over channels" in refused(model, X)[""]


def test_an_attention_of_one_head_by_a_vector_of_scores() -> None:
    """A score from each end, as a graph attention has."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        score = (x * m.source).sum(-1)[..., :, None] + (x * m.target).sum(-1)[..., None, :]
        return m.head(F.leaky_relu(score).softmax(-1) @ x)

    model = Net(forward, a=nn.Linear(4, 8), source=parameter(8), target=parameter(1, 1, 8), head=nn.Linear(8, 3))
    check_rule(model, X, units={"a": 8}, witness=False)


def test_a_product_of_an_activation_and_a_vector_of_them_ties_channels() -> None:
    model = Net(
        lambda m, x: m.head(m.a(x) * torch.einsum("bnd,bd->bn", m.a(x), m.a(x).mean(1))[..., None]),
        a=nn.Linear(4, 8),
        head=nn.Linear(8, 3),
    )
    assert "over all channels" in refused(model, X)[""]


EXPERTS = {
    "both": (
        lambda m, x: torch.einsum(
            "ebch,ehd->ebcd", torch.einsum("ebcd,edh->ebch", x.expand(2, -1, -1, -1), m.up).relu(), m.down
        ),
        (2, 8, 6),
        (2, 6, 8),
    ),
    "dots": (
        lambda m, x: torch.einsum("e...h,ehd->e...d", torch.einsum("...d,edh->e...h", x, m.up).relu(), m.down),
        (2, 8, 6),
        (2, 6, 8),
    ),
    "turned": (
        lambda m, x: torch.einsum("hde,bche->ebcd", m.down, torch.einsum("bcd,hed->bche", x, m.up).relu()),
        (6, 2, 8),
        (6, 8, 2),
    ),
}


@pytest.mark.parametrize("experts", EXPERTS)
def test_einsum_of_experts(experts: str) -> None:
    run, up, down = EXPERTS[experts]
    model = Net(
        lambda m, x: m.head(run(m, m.a(x)).sum(0)),
        a=nn.Linear(4, 8),
        up=parameter(*up),
        down=parameter(*down),
        head=nn.Linear(8, 3),
    )
    check_rule(model, X, units=8 + 6 + 8, witness=False)


def test_routed_experts_by_einsum() -> None:
    """Tokens are sent to experts and back by einsum; the gate's own channels are the experts."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        share = m.gate(x).softmax(-1)
        sent = torch.einsum("bne,bnd->ebnd", share, x)
        inner = torch.einsum("ebnd,edh->ebnh", sent, m.up).relu()
        return m.head(torch.einsum("ebnh,ehd->bnd", inner, m.down))

    model = Net(
        forward,
        a=nn.Linear(4, 8),
        gate=nn.Linear(8, 3),
        up=parameter(3, 8, 6),
        down=parameter(3, 6, 8),
        head=nn.Linear(8, 3),
    )
    reasons = refused(model, X)
    assert "softmax over channels" in reasons["gate"]
    assert "a" not in reasons


@pytest.mark.parametrize("kind", ["two activations and a matrix", "two steps"])
def test_einsum_of_three_operands(kind: str) -> None:
    def score(m: Net, x: Tensor, y: Tensor) -> Tensor:
        if kind == "two steps":
            return torch.einsum("bne,bme->bnm", torch.einsum("bnd,de->bne", x, m.w), y)
        return torch.einsum("bnd,de,bme->bnm", x, m.w, y)

    model = Net(
        lambda m, x: m.head((s := score(m, m.a(x), m.b(x))).softmax(-1) @ m.c(x)) + s.mean(),
        a=nn.Linear(4, 8),
        w=parameter(8, 6),
        b=nn.Linear(4, 6),
        c=nn.Linear(4, 7),
        head=nn.Linear(7, 3),
    )
    sparse = check_rule(model, X, units=8 + 7, witness=False)
    assert "over all channels" in {r.layer: r.reason for r in sparse.report().rows}["b"]


def test_einsum_of_three_operands_keeps_heads_apart() -> None:
    """Queries, a matrix for each head, keys."""

    def forward(m: Net, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, -1)) for f in (m.q, m.k, m.v))
        scores = torch.einsum("bnhd,hde,bmhe->bhnm", q, m.w, k)
        return m.head(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))

    model = Net(
        forward, q=nn.Linear(4, 6), k=nn.Linear(4, 12), v=nn.Linear(4, 9), w=parameter(3, 2, 4), head=nn.Linear(9, 3)
    )
    assert "written down" in refused(model, X)[""]
    by_size = Net(
        lambda m, x: forward_by_size(m, x),
        q=nn.Linear(4, 6),
        k=nn.Linear(4, 12),
        v=nn.Linear(4, 9),
        w=parameter(3, 2, 4),
        head=nn.Linear(9, 3),
    )
    check_rule(by_size, X, units=3, witness=False)


def forward_by_size(m: Net, x: Tensor) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (-1, n)) for f, n in ((m.q, 2), (m.k, 4), (m.v, 3)))
    scores = torch.einsum("bnhd,hde,bmhe->bhnm", q, m.w, k)
    return m.head(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))


@pytest.mark.parametrize("dots", ["bh", "..."])
def test_einsum_with_an_ellipsis_is_what_it_stands_for(dots: str) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, m.heads, -1).transpose(1, 2) for f in (m.q, m.k, m.v))
        scores = torch.einsum(f"{dots}id,{dots}jd->{dots}ij", q, k).softmax(-1)
        return m.head(torch.einsum(f"{dots}ij, {dots}jd->{dots}id", scores, v).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(4, 12) for name in "qkv"}
    check_rule(Net(forward, **parts, head=nn.Linear(12, 3), heads=4), X, units=4, witness=False)


def test_einsum_that_only_moves_scales_or_sums() -> None:
    model = Net(
        lambda m, x: m.head(torch.einsum("bnd->bd", torch.einsum("bdn->bnd", torch.einsum("bnd,d->bdn", m.a(x), m.s)))),
        a=nn.Linear(4, 8),
        s=parameter(8),
        head=nn.Linear(8, 3),
    )
    check_rule(model, X, units={"a": 8})


def test_einsum_over_a_diagonal_says_so() -> None:
    model = Net(
        lambda m, x: m.head(torch.einsum("bdd->bd", m.a(x)[:, None].expand(-1, 8, -1))),
        a=nn.Linear(4, 8),
        head=nn.Linear(8, 3),
    )
    assert "of a diagonal" in refused(model, X[:, 0])[""]


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_channels(same: bool) -> None:
    model = Net(
        lambda m, x: m.head(m.pair(m.a(x), m.a(x) if same else m.b(x)).relu()),
        a=nn.Linear(4, 8),
        **({} if same else {"b": nn.Linear(4, 7)}),
        pair=nn.Bilinear(8, 8 if same else 7, 6),
        head=nn.Linear(6, 3),
    )
    sparse = check_rule(model, X, units=8 + 6 + (0 if same else 7), witness=False)
    small = sparse.compact()
    pair, positions = small.pair, 5
    assert (pair.in1_features, pair.in2_features, pair.out_features) == tuple(pair.weight.shape[i] for i in (1, 2, 0))
    linear = sum(f.weight.numel() for f in small.children() if isinstance(f, nn.Linear)) + (
        small.a.weight.numel() if same else 0
    )
    assert sparse.cost().macs == positions * (linear + pair.weight.numel())


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_columns_of_a_bag_of_rows(mode: str) -> None:
    model = nn.Sequential(nn.EmbeddingBag(20, 8, mode=mode), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    sparse = check_rule(model, torch.randint(20, (3, 5)), units={"0": 8, "1": 6})
    assert sparse.compact()[0].embedding_dim == sparse.compact()[0].weight.shape[1]


def test_bags_with_offsets_and_weights() -> None:
    model = Net(
        lambda m, x, offsets: m.head(m.bag(x, offsets, m.share.softmax(0))),
        bag=nn.EmbeddingBag(20, 8, mode="sum"),
        share=parameter(7),
        head=nn.Linear(8, 3),
    )
    check_rule(model, torch.randint(20, (7,)), torch.tensor([0, 3]), units={"bag": 8}, witness=False)


def test_a_weight_that_a_layer_makes() -> None:
    """Its rows are channels of the layer that makes it."""
    model = Net(
        lambda m, x: m.head(F.linear(m.a(x), m.make(m.code).unflatten(-1, (-1, 8)))),
        a=nn.Linear(4, 8),
        code=nn.Parameter(torch.randn(3)),
        make=nn.Linear(3, 6 * 8),
        head=nn.Linear(6, 3),
    )
    refused(model, X)


def test_rows_that_are_sent_to_a_product_with_a_stack() -> None:
    model = Net(
        lambda m, x: m.head(torch.bmm(torch.bmm(m.a(x).expand(2, -1, -1), m.up).relu(), m.down).sum(0)),
        a=nn.Linear(4, 8),
        up=parameter(2, 8, 6),
        down=parameter(2, 6, 7),
        head=nn.Linear(7, 3),
    )
    check_rule(model, torch.randn(5, 4), units=8 + 6 + 7)


def test_gates_of_each_example_cannot_lie_on_a_sum() -> None:
    model = Net(
        lambda m, x: m.head(m.a(x) * (m.a(x) * m.v).sum(-1)[..., None]),
        a=nn.Linear(4, 8),
        v=parameter(8),
        head=nn.Linear(8, 3),
    )
    with pytest.raises(zg.ZerogateError, match="per_example gates need"):
        zg.sparsify(model, X, per_example=True)
