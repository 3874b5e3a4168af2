"""The refusals of the zoo by what they say, with what each means and what frees the channels; docs/refusals.md of them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Refusals that mean the same."""

    title: str
    """The reason as it reads, with OP for the operation and NAME for a tensor."""
    pattern: str
    """What such reasons match, from their beginning."""
    meaning: str
    """Why the channels stay."""
    freed_by: str
    """What a user can do."""


KEEP = "Nothing; it costs nothing in accuracy, and everything before the layer can still go."
KINDS = (
    Kind(
        "an output of the network",
        r"an output of the network",
        "These channels are what the network returns, such as the scores of classes. Without them it would return something "
        "else.",
        "Nothing where the output is wanted. Where a forward also returns tensors that nobody uses (features beside boxes, "
        "hidden states), say which outputs count by `outputs=` of `sparsify`: their names, or a function that picks them.",
    ),
    Kind(
        "not run on the example inputs",
        r"not run on the example inputs|not read on the example inputs",
        "No operation read the weight while the model ran on the example inputs, so nothing is known of what it makes: a "
        "branch for another kind of input, a part that runs in training only, or a module that the forward no longer uses.",
        "Pass example inputs that reach it. A module that is never used can be deleted.",
    ),
    Kind(
        "OP over channels",
        r"\w+ over (all )?channels|a norm over channels|\w+ over places that hold different channels|"
        r"cosine_similarity over|.* over (all )?channels|softmax over|\w+ over channels with",
        "The operation mixes the channels into each number that it makes (a softmax, a maximum, a norm, a convolution that "
        "runs along them). With a channel less, all the others would change.",
        "Where it is a norm: one of torch (`nn.LayerNorm`, `nn.RMSNorm`, `nn.GroupNorm`) in place of your own; these are "
        "carried over exactly. Otherwise take the operation over another dimension, or exclude the layers that make these "
        "channels, which changes nothing but the report.",
    ),
    Kind(
        "OP to a size that is written down",
        r"\w+ to a size that is written down|\w+ of tensors whose sizes no longer agree|"
        r"\w+ in a number of groups that is written down|"
        r"\w+ with a number that depends on the size",
        "The forward has the number of channels, or of heads, as a constant (`x.view(n, 8, 64)`), or takes it from where "
        "zerogate cannot set it. A smaller tensor would not fit there.",
        "Take the number from the tensor (`x.shape[-1]`, or −1 in a `view`) or from an attribute of a module (`self.dim`), "
        "which is set when the network is cut. Or pass `keep_class=False`: the network is then handed back as a graph, in "
        "which such numbers are corrected.",
    ),
    Kind(
        "OP at a fixed place among channels",
        r"\w+ at a fixed place among channels|\w+ at a part of the places|\w+ of other channels at each place",
        "The forward picks channels by their number (`x[:, :16]`), so those before that place have to stay where they are.",
        "Split by sizes that follow from the tensor (`x.chunk(2, 1)`), or make the two parts by two layers; or pass "
        "`keep_class=False`.",
    ),
    Kind(
        "the forward depends on its size",
        r"the forward depends on its size|the forward takes another way|the network does not run",
        "The forward asks how many channels there are and does something else, or stops, where there are fewer.",
        "Remove the question, or the assertion, from the forward where it does not matter.",
    ),
    Kind(
        "a layer whose weight is computed, not a parameter",
        r"a layer whose weight is computed|\w+ with a weight that a layer has made|"
        r"a weight that is computed|an operand that is computed|weight normalisation|"
        r"linear with a weight that is not|_grouped_mm of something",
        "The layer does not read a parameter but what the forward computes from others, in a way that zerogate cannot cut.",
        "Weight norm, spectral norm, standardised weights and masks of torch and of common libraries are followed; for "
        "others bake the weight into a parameter, or leave the layer dense.",
    ),
    Kind(
        "OP has no rule",
        r"\w+ has no rule|\w+ cannot be followed|\w+ of shapes that do not fit|\w+ has several outputs",
        "What the operation does with channels is not known to zerogate, so those that enter it stay.",
        "A rule can be added: see [add_an_op_rule.md](add_an_op_rule.md). Or write it with operations that are known.",
    ),
    Kind(
        "OP by channels, or at places that depend on channels",
        r"\w+ at places that depend on channels|\w+ by channels|\w+ among channels|select among channels|"
        r"\w+ of a single channel with others|\w+ with something that all of its parts share|its attn_mask has a part",
        "Values of these channels say what is picked, or one of them is used beside all others: as an index, a position, a "
        "score. Each of them has a part of its own.",
        KEEP,
    ),
    Kind(
        "units along positions meet what keeps all positions",
        r"\w+ of units along positions|\w+ folds channels into|\w+ of channels along three dimensions",
        "A layer works along positions (the tokens of a mixer), or a reshape folds channels and positions into one, and "
        "what it makes meets a tensor that keeps all positions, or is not made of whole channels.",
        "Nothing in most networks: the layers around it can still lose channels. Positions go only where every tensor that "
        "meets them loses the same.",
    ),
    Kind(
        "einsum EQUATION",
        r"einsum",
        "The equation is none of those that zerogate follows.",
        "Write it with `permute`, `reshape` and `matmul`.",
    ),
    Kind(
        "NAME is used with and without removable channels",
        r".* is used with and without removable channels|a parameter among channels|"
        r"a parameter over several dimensions of channels|\w+ of a parameter|\w+ of a vector|\w+ with factors|"
        r"glu of channels and constants|\w+ writes into a tensor that held no channels|transposed convolution in",
        "A tensor is read in two places, of which one needs all of it, or it meets the channels in a way in which no slice "
        "of it belongs to each.",
        "Give each place a tensor of its own.",
    ),
    Kind(
        "NAME is excluded",
        r".* is excluded|excluded",
        "You asked for it, by `exclude` or `include`.",
        "Take the layer out of `exclude`.",
    ),
    Kind(
        "a single unit, or a group all of whose channels are kept",
        r"a single unit|a group of \d+ channels",
        "A group keeps at least one channel, and as many as `min_channels` and `round_to` say; here these are all of them.",
        "Lower `min_channels` or `round_to`. One channel that is alone cannot go.",
    ),
    Kind(
        "nothing here can be removed",
        r"nothing here can be removed|no layer consumes it|it runs no|"
        r"its (input )?channels (stay|are not followed)|not followed|a network input",
        "What the layer reads stays, or what it makes is not followed: the reason stands with the layers around it.",
        "See the reasons of the layers before and after it.",
    ),
)


def kind_of(reason: str) -> Kind | None:
    """The kind that a reason is of; None where none is known."""
    return next((kind for kind in KINDS if re.match(kind.pattern, reason)), None)


def reasons_of(row: Row) -> dict[str, int]:
    """Why layers of a network stay, and of how many that holds; of one that was refused whole, why."""
    found = dict(row.get("refused", {}))
    whole = re.search(r"has no unit that could be removed: (.*?)\. Channels must lie", str(row.get("failure", "")))
    for reason in whole.group(1).split("; ") if whole else ():
        found[reason] = found.get(reason, 0) + 1
    return found


def sorted_refusals(rows: list[Row]) -> dict[str, Any]:
    """Kinds of reasons by how many networks they touch; for each, in how many layers, and what it said in which networks."""
    networks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    examples: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        for reason, count in reasons_of(row).items():
            kind = kind_of(reason)
            title = kind.title if kind else reason
            name = f"{row['source']}/{row['name']}"
            networks[title][name] += count
            if _without_place(reason) not in map(_without_place, examples[title].values()):
                examples[title].setdefault(name, reason)
    order = sorted(networks, key=lambda title: (-len(networks[title]), title))
    refused_whole = [f"{row['source']}/{row['name']}" for row in rows if "failure" in row]
    kinds = [
        {
            "reason": title,
            "networks": len(networks[title]),
            "layers": sum(networks[title].values()),
            "examples": dict(list(examples[title].items())[:5]),
        }
        for title in order
    ]
    return {"networks": sum("params" in row for row in rows), "refused_whole": refused_whole, "kinds": kinds}


def _without_place(reason: str) -> str:
    """A reason without the module and the line that it names."""
    return re.sub(r"( in [\w.]+)?( \([\w.]+:\d+\))?$", "", reason)


HEADER = """\
# Why channels stay

`sparse.report()` names, for every layer of which channels cannot be removed, the reason, the module and the line of code
that it is due to. This page lists what can be said there, the most frequent first: what it means and what frees the
channels. It is made by `python benchmarks/zoo.py --refusals` from what {networks} architectures of the zoo have recorded.

A layer that is refused keeps its width and is computed as before; its weights still get smaller where the layers before it
lose channels. Nothing is ever removed that could not be removed exactly.
"""


def page(refusals: dict[str, Any]) -> str:
    """docs/refusals.md."""
    by_title = {kind.title: kind for kind in KINDS}
    parts = [HEADER.format(networks=refusals["networks"])]
    parts.append("| reason | networks | layers |\n| --- | --- | --- |")
    for entry in refusals["kinds"]:
        parts[-1] += f"\n| {_cell(entry['reason'])} | {entry['networks']} | {entry['layers']} |"
    seen = {entry["reason"]: entry for entry in refusals["kinds"]}
    for title in [*seen, *(title for title in by_title if title not in seen)]:
        kind, entry = by_title.get(title), seen.get(title)
        parts.append(f"## {title}")
        if kind is not None:
            parts += [kind.meaning, f"**What frees them.** {kind.freed_by}"]
        if entry is not None:
            examples = [f"* `{reason}` ({network})" for network, reason in entry["examples"].items()]
            parts.append("As it was said:\n\n" + "\n".join(examples))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
