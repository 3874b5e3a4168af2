"""Tensors of many zeros: the same bits back, no more bytes than the smallest form, damage refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import zerogate as zg
from support import Lambda
from zerogate.cutting.plan import Plan
from zerogate.storage.encodings import Encoded, decode, encode, header_bytes, pack, smallest, unpack
from zerogate.storage.plan_json import describe_plan
from zerogate.storage.sealed_file import digest

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def raw(x: Tensor) -> list[int]:
    return x.flatten().view(torch.uint8).tolist() if x.numel() else []


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and b.is_contiguous() and raw(a) == raw(b)


def size(encoded: Encoded | None, x: Tensor) -> int:
    parts = [x] if encoded is None else [encoded.values, encoded.where]
    return sum(part.numel() * part.element_size() for part in parts)


def back(x: Tensor) -> Tensor:
    encoded = encode(x)
    return x if encoded is None else decode(encoded, x.shape)


@settings(max_examples=300)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple) | st.tuples(st.integers(200, 900)),
    density=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 10**6),
    whole_entries=st.booleans(),
)
def test_the_same_bits_in_the_fewest_bytes(
    dtype: torch.dtype, shape: tuple[int, ...], density: float, seed: int, whole_entries: bool
) -> None:
    """Any bytes at all: every payload of NaN, both zeros, infinities, halves of complex numbers."""
    generator = torch.Generator().manual_seed(seed)
    itemsize, entries = dtype.itemsize, torch.Size(shape).numel()
    bytes_ = torch.randint(256, (entries, itemsize), dtype=torch.uint8, generator=generator)
    if dtype is torch.bool:
        bytes_ %= 2
    open_ = torch.rand(entries, 1 if whole_entries else itemsize, generator=generator) < density
    bytes_ = bytes_ * open_.to(torch.uint8)
    x = bytes_.flatten().view(dtype).view(shape)
    encoded = encode(x)
    nonzeros = sum(any(row) for row in bytes_.tolist())
    index = 1 if entries <= 256 else 2
    forms = [entries * itemsize, (entries + 7) // 8 + nonzeros * itemsize, nonzeros * (index + itemsize)]
    assert size(encoded, x) == min(forms) == smallest(entries, nonzeros, itemsize)[1]
    assert same_bits(x, back(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_only_plus_zero_is_left_out(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 25, dtype=dtype)
    odd = [-0.0, float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).smallest_normal / 4]
    x[1, 3:8] = torch.tensor(odd, dtype=dtype)
    encoded = encode(x)
    assert encoded is not None and encoded.form == "coo"
    assert encoded.where.tolist() == [[28], [29], [30], [31], [32]]
    assert same_bits(decode(encoded, x.shape), x)


def test_the_forms_byte_by_byte() -> None:
    x = torch.zeros(2, 5)
    x[0, 0], x[0, 3], x[1, 4] = 1.5, -2.0, 4.0
    encoded = encode(x)
    assert encoded is not None and encoded.form == "bitmask"  # 2 + 12 bytes; by indices 3 + 12, dense 40
    assert encoded.where.tolist() == [0b1001, 0b10] and encoded.values.tolist() == [1.5, -2.0, 4.0]
    x[0] = 0
    encoded = encode(x)
    assert encoded is not None and encoded.form == "coo"  # 1 + 4 bytes
    assert encoded.where.tolist() == [[9]] and encoded.values.tolist() == [4.0]
    assert encode(torch.ones(10)) is None and encode(torch.zeros(0)) is None and encode(torch.tensor(1.0)) is None
    assert back(torch.tensor(0.0)).shape == ()


def test_indices_grow_with_the_tensor() -> None:
    for entries, last in (
        (2, [1]),
        (256, [255]),
        (257, [0, 1]),
        (1 << 16, [255, 255]),
        ((1 << 16) + 3, [2, 0, 1]),
        ((1 << 24) + 1, [0, 0, 0, 1]),
    ):
        x = torch.zeros(entries, dtype=torch.int8 if entries > 2 else torch.float64)
        x[-1] = 1
        encoded = encode(x)
        assert encoded is not None and encoded.form == ("coo" if entries > 2 else "bitmask")
        assert entries == 2 or encoded.where.tolist() == [last]
        assert torch.equal(decode(encoded, x.shape), x)
    assert smallest((1 << 32) + 1, 1, 4) == ("coo", 9) and smallest(1 << 32, 1, 4) == ("coo", 8)


def test_what_is_not_worth_its_entry_in_the_header_stays_dense() -> None:
    x = torch.zeros(100)
    assert encode(x, saving=400) is None and encode(x, saving=399) is not None
    assert smallest(100, 0, 4, 400) == ("dense", 400)
    tensors = {"a": torch.zeros(50), "b": torch.zeros(500), "c": torch.zeros(500)}
    stored, table = pack(tensors, ["a", "b"])
    assert table == {"b": ["coo", [500]]} and sorted(stored) == ["a", "b", "b..coo", "c"]
    assert unpack(stored, table, {n: x.shape for n, x in tensors.items()}).keys() == tensors.keys()


# files


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def ticket(model: nn.Module, x: Tensor, share: float, **options: Any) -> tuple[zg.Sparsified, nn.Module]:
    sparse = zg.sparsify(model, x, gate=zg.SoftMask(initial_value=-0.1, steps=5), unit="weight", **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sparse.logits.copy_(torch.where(torch.rand(len(sparse.logits), generator=generator) < share, 0.2, -0.2))
    return sparse, sparse.compact()


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        plan = json.loads(file.metadata()["zerogate"])["plan"]
        return plan, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def data_bytes(path: Path) -> int:
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.parametrize(("share", "form"), [(0.05, "coo"), (0.3, "bitmask")])
def test_a_ticket_of_resnet20(tmp_path: Path, share: float, form: str) -> None:
    torch.manual_seed(0)
    model = zg.models.resnet20()
    for p in model.parameters():
        nn.init.normal_(p)  # as after training: nothing else is zero
    sparse, small = ticket(model, torch.randn(2, 3, 32, 32), share)
    open_ = sparse.is_open()
    expected = sum(x.numel() * x.element_size() for x in weights_of(small).values())
    dense_bytes = expected
    for mask, group in zip(sparse.placements, sparse.groups, strict=True):
        weight, kept = small.get_parameter(mask.weight), open_[group.slice]
        baked = model.get_parameter(mask.weight) * sparse.gate.scale  # the scale 1/σ(s₀) is folded
        assert torch.equal(weight.flatten()[kept], baked.flatten()[kept])
        assert not weight.flatten()[~kept].view(torch.int32).any()  # +0, not a negative weight times 0
        n, k = weight.numel(), int(kept.sum())
        expected -= 4 * n - min(2 * k + 4 * k, -(-n // 8) + 4 * k)
    zg.save(small, tmp_path / "sparse")
    zg.save(small, tmp_path / "dense", sparse=False)
    plan, _ = opened(tmp_path / "sparse")
    assert {name: entry[0] for name, entry in plan["encoded"].items()} == dict.fromkeys(sparse._layout.names, form)
    assert data_bytes(tmp_path / "sparse") == expected and data_bytes(tmp_path / "dense") == dense_bytes
    assert sparse.report().file_bytes == (expected, dense_bytes)
    smaller, larger = ((tmp_path / name).stat().st_size for name in ("sparse", "dense"))
    assert smaller < larger * (share + 0.08)
    room = sum(map(header_bytes, plan["encoded"]))
    assert 0 < smaller - larger - (expected - dense_bytes) <= room  # what the header says of it
    for name in ("sparse", "dense"):
        loaded = zg.load(tmp_path / name, zg.models.resnet20)
        for key, value in weights_of(small).items():
            assert same_bits(loaded.state_dict()[key], value), key
        assert loaded.zerogate_plan == small.zerogate_plan
        zg.save(loaded, tmp_path / "again", overwrite=True, sparse=name == "sparse")
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()


def test_the_average_of_a_ticket_is_sparse_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 4))
    ema = torch.optim.swa_utils.AveragedModel(model)
    sparse, _ = ticket(model, torch.randn(2, 40), 0.2)
    small = sparse.compact(ema=ema)
    zg.save(small, tmp_path / "small")
    zg.save(ema.module, tmp_path / "ema")
    assert data_bytes(tmp_path / "ema") == data_bytes(tmp_path / "small") < 4 * 40 * 50 / 2


def test_files_without_zeros_are_those_of_before(tmp_path: Path) -> None:
    """Read by a zerogate that knows nothing of encodings, and the same whether or not zeros may be left out."""
    sparse = zg.sparsify(zg.models.lenet300(), torch.randn(2, 1, 28, 28))
    small = sparse.compact()
    zg.save(small, tmp_path / "a")
    zg.save(small, tmp_path / "b", sparse=False)
    plan, stored = opened(tmp_path / "a")
    assert plan["version"] == 2 and "encoded" not in plan and stored.keys() == small.state_dict().keys()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(zg.ZerogateError, match=r"sparse must be True .* or False, got 'coo'"):
        zg.save(small, tmp_path / "c", sparse="coo")  # type: ignore[arg-type]


class Odd(nn.Module):
    """Ties, memory formats, buffers in and out of the state_dict, all of zeros; names that look like parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 20), nn.Linear(20, 50, bias=False)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain = torch.zeros(500)
        self.register_buffer("mask", torch.zeros(30, 40, dtype=torch.bool))
        self.register_buffer("phase", torch.zeros(300, dtype=torch.complex64))
        self.register_buffer("cache", torch.zeros(600), persistent=False)
        self.register_buffer("mask:coo", torch.zeros(400, dtype=torch.bfloat16))
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def odd() -> Odd:
    model = Odd()
    model.zerogate_plan = describe_plan(Plan(), model, model)  # type: ignore[assignment]
    with torch.no_grad():
        model.embed.weight[3, 4], model.conv.weight[5, 6, 1, 2] = -0.0, float("nan")
        model.mask[2, 3], model.phase[7], model.cache[1] = True, 1j, 5.0
        model.get_buffer("mask:coo")[3] = 2.0
    return model


def test_ties_formats_and_buffers(tmp_path: Path) -> None:
    model = odd()
    zg.save(model, tmp_path / "x")
    plan, stored = opened(tmp_path / "x")
    assert plan["encoded"].keys() == {"embed.weight", "conv.weight", "mask", "phase", "mask:coo"}
    assert stored["cache"].shape == (600,) and stored["mask..coo"].tolist() == [[83, 0]]
    loaded = zg.load(tmp_path / "x", Odd)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.conv.weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip([*model.parameters(), *model.buffers()], [*loaded.parameters(), *loaded.buffers()], strict=True):
        assert same_bits(a.contiguous(), b.contiguous()) and a.stride() == b.stride()
    assert torch.equal(loaded.plain, model.plain)


def resealed(path: Path, plan: Any, stored: dict[str, Tensor]) -> None:
    """A file whose hash is right, whatever it holds."""
    text, stored = json.dumps(plan), {name: x.contiguous() for name, x in stored.items()}
    sealed = f'{{"sha256": "{digest(text, stored)}", "plan": {text}}}'
    save_file(stored, path, metadata={"zerogate": sealed})


def test_encodings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    model = Lambda(lambda m, x: m.b(m.a(x)), a=nn.Linear(30, 41), b=nn.Linear(41, 30))
    make = lambda: Lambda(model.function, a=nn.Linear(30, 41), b=nn.Linear(41, 30))  # noqa: E731
    with torch.no_grad():
        model.a.weight.masked_fill_(torch.arange(1230).view(41, 30) % 3 > 0, 0)
        model.b.weight.masked_fill_(torch.arange(1230).view(30, 41) % 50 > 0, 0)
    model.zerogate_plan = describe_plan(Plan(), model, model)  # type: ignore[assignment]
    zg.save(model, path)
    plan, stored = opened(path)
    encoded = plan["encoded"]
    assert encoded == {"a.weight": ["bitmask", [41, 30]], "b.weight": ["coo", [30, 41]]}
    bits, places = stored["a.weight..bitmask"], stored["b.weight..coo"]
    resealed(path, plan, stored)
    assert torch.equal(zg.load(path, make).b.weight, model.b.weight)  # what follows is refused for what it says

    def refused(says: str, changes: dict[str, Tensor | None] | None = None, **entries: Any) -> None:
        held = {name: x for name, x in (stored | (changes or {})).items() if x is not None}
        table = {name: entry for name, entry in (encoded | entries).items() if entry != "left out"}
        resealed(path, plan | {"encoded": table}, held)
        with pytest.raises(zg.CheckpointError, match=says) as error:
            zg.load(path, make)
        assert "\n" not in str(error.value) and str(error.value).startswith(str(path))

    flipped, padding, high = bits.clone(), bits.clone(), places.clone()
    flipped[0] ^= 2
    padding[-1] |= 0x80
    high[-1, 1] = 255
    name = "a.weight"
    refused(r"a.weight as a bitmask with 411 places and values of shape \[410\]", {"a.weight..bitmask": flipped})
    refused("a bitmask with places that do not ascend within 0 … 1229", {"a.weight..bitmask": padding})
    refused(r"a bitmask of 1230 entries in torch.uint8 \[153\], not in .* \[154\]", {"a.weight..bitmask": bits[1:]})
    refused(r"a bitmask .* torch.int8 \[154\], not in torch.uint8", {"a.weight..bitmask": bits.view(torch.int8)})
    refused(r"a bitmask .* torch.uint8 \[2, 77\], not in", {"a.weight..bitmask": bits.view(2, 77)})
    refused(r"a bitmask with 410 places and values of shape \[409\]", {name: stored[name][1:]})
    refused(r"a bitmask with 410 places and values of shape \[410, 1\]", {name: stored[name].view(-1, 1)})
    refused(r"a bitmask with 410 places and values of shape \[\]", {name: torch.tensor(1.0)})
    refused("does not hold a.weight..bitmask, part of an encoding", {"a.weight..bitmask": None})
    refused("does not hold a.weight, part of an encoding", {name: None})
    refused("b.weight as a coo with places that do not ascend within 0 … 1229", {"b.weight..coo": places.flip(0)})
    refused("places that do not ascend", {"b.weight..coo": torch.cat([places[:1], places[:-1]])})
    refused("places that do not ascend", {"b.weight..coo": high})
    refused(r"a coo with 25 places and values of shape \[24\]", {"b.weight": stored["b.weight"][1:]})
    refused(r"a coo with 24 places and values of shape \[25\]", {"b.weight..coo": places[1:]})
    refused(r"a coo .* in torch.int64 \[25, 2\], not in", {"b.weight..coo": places.to(torch.int64)})
    refused(r"a coo .* \[25, 1\], not in torch.uint8 \[25, 2\]", {"b.weight..coo": places[:, :1]})
    refused(r"a coo .* in torch.uint8 \[\], not in torch.uint8 \[0, 2\]", {"b.weight..coo": places[0, 0]})
    refused("does not hold the tensors its plan promises; damaged: more..coo", {"more..coo": bits.clone()})
    dense: Any = {"a.weight": "left out"}
    refused("does not hold the tensors its plan promises", **dense)
    for entry in (
        ["coo", [41, 31]],
        ["coo", [10**18]],
        ["csr", [41, 30]],
        ["coo"],
        "coo",
        None,
        3,
        {"coo": 1},
        [[], []],
    ):
        refused("says of a.weight that it is encoded as", **{"a.weight": entry})
    refused(r"says of c.weight that it is encoded as \['coo', \[1\]\]", **{"c.weight": ["coo", [1]]})
    for table in (None, [], "coo", 3):
        resealed(path, plan | {"encoded": table}, stored)
        with pytest.raises(zg.CheckpointError, match="holds a plan without its encoded"):
            zg.load(path, make)
    resealed(path, plan | {"version": 2}, stored)  # an earlier version knows nothing of encodings
    with pytest.raises(zg.CheckpointError, match="does not hold the tensors its plan promises"):
        zg.load(path, make)


def test_any_flipped_bit_of_an_encoded_file_is_refused(tmp_path: Path) -> None:
    model = odd()
    path = tmp_path / "x"
    zg.save(model, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    loads = 0
    for position in [*range(0, header, 7), *range(header, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            loaded = zg.load(path, Odd)
        except zg.CheckpointError:
            continue
        loads += 1
        for name, value in model.state_dict().items():  # the byte of a True may be any but 0
            assert same_bits(loaded.state_dict()[name].contiguous(), value.contiguous())
    assert loads <= 2
