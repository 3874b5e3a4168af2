"""Tables of results that the programs in benchmarks/ and `zerogate compare` have written; their files stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from zerogate.bench import columns
from zerogate.bench.columns import Value
from zerogate.bench.render import Line, Rendered, Section, non_empty
from zerogate.bench.table import Plain, Table
from zerogate.errors import ZerogateError


def _read(folder: Path, name: str) -> Plain:
    """What a file of results holds.

    Raises:
        ZerogateError: it is missing or damaged.
    """
    path = folder / f"{name}.json"
    try:
        content: Plain = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ZerogateError(
            f"{path} cannot be read ({error}); restore it, or write it anew as its table says"
        ) from error
    if not isinstance(content, dict):
        raise ZerogateError(f"{path} holds no result; restore it, or write it anew as its table says")
    return content


def _origin(record: Plain) -> str:
    """A sentence: the command, device, commit and versions of a result."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"`{record['command']}`, on {record['device']}, commit {record['commit']}; {versions}."


def render(table: Table, folder: Path) -> Rendered:
    """The table that `table.source` names, from the files in `folder`.

    Raises:
        ZerogateError: a file that is missing or damaged.
    """
    source = {**(table.source or {}), "columns": table.columns}
    sections, notes = _SOURCES[source["form"]](source, folder)
    return Rendered(table.name, table.title, sections, [*table.notes, *notes], table.command, table.plot)


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _repeats(source: Plain, folder: Path) -> tuple[list[Section], list[str]]:
    """Files of benchmarks/repeat.py, a row each."""
    heads = [("data", "data, network"), ("gates", "gates"), ("test_accuracy", "test accuracy %"),
             ("params_removed", "parameters removed %"), ("macs_removed", "MACs removed %")]  # fmt: skip
    lines, origins = [], []
    for entry in source["rows"]:
        record = _read(folder, entry["file"])
        figures = record["figures"]

        def values(name: str, figures: Plain = figures) -> tuple[float, ...]:
            return tuple(100 * value for value in figures[name]["values"]) if name in figures else ()

        cells = {
            "data": Value(text=entry["data"]),
            "gates": Value(text=entry["gates"]),
            "test_accuracy": Value(values("test_accuracy"), 2),
            "params_removed": Value(values("sparsity_params"), 1),
            "macs_removed": Value(values("sparsity_macs"), 1),
        }
        lines.append(Line(entry["file"], f"`{entry['file']}`", cells, record["n"]))
        origins.append(f"`{entry['file']}`: `{record['command']}`; {record['device']}, commit {record['commit']}, "
                       f"torch {record['versions']['torch']}.")  # fmt: skip
    return [Section("", heads, lines)], origins


def _overhead(source: Plain, folder: Path) -> tuple[list[Section], list[str]]:
    """The file of benchmarks/overhead.py: a section for every measure."""
    record = _read(folder, source["file"])
    sections = []
    for measure in dict.fromkeys(row["measure"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["measure"] == measure]
        key, head = ("ratio", "gated / dense") if any("ratio" in row for row in rows) else ("more", "gated − dense")
        heads = [("network", "network"), ("layout", "memory format")]
        heads += [(name, name) for name in ("batch", "dense", "gated")]
        heads += [(key, head), ("spread", "quartiles")]
        lines = [_overhead_line(measure, row, key) for row in rows]
        meaning = record.get("meanings", {}).get(measure)
        meaning = ", ".join(meaning) if isinstance(meaning, list) else meaning
        sections.append(Section(measure, non_empty(heads, lines), lines, [f"{measure}: {meaning}."] if meaning else []))
    return sections, [_origin(record)]


def _overhead_line(measure: str, row: Plain, key: str) -> Line:
    """A row of that file; `key` is the figure that is compared with its goal."""
    names = [name for name in ("network", "batch", "dense", "gated") if row.get(name) is not None]
    cells = {name: Value(text=_number(row[name])) for name in names}
    if "layout" in row:
        cells["layout"] = Value(text=row["layout"].replace("_", " "))
    cells[key] = Value(text=f"{row[key]:.{3 if key == 'ratio' else 2}f}")
    if "lower quartile" in row:
        cells["spread"] = Value(text=f"{row['lower quartile']:.3f} to {row['upper quartile']:.3f}")
    goal = ""
    if row.get("goal") is not None:
        goal = f"≤ {row['goal']:g}: {'met' if row[key] <= row['goal'] else 'missed'}"
    place = f"{measure}/{row['network']}/{row['gates']}/{row.get('layout', '')}/{row['batch']}"
    return Line(place, row["gates"], cells, row.get("n", 0), goal)


_SUMMARY = {
    "models": "architectures",
    "gated": "with gates",
    "exact": "compacted within 1e-10 of the gated network, in float64",
    "compared_in_training": "compared in training mode, too",
    "exact_in_training": "of these, within 1e-10",
    "median_weight_share": "median share of convolution and linear weights within reach",
    "weight_share_at_least_90_percent": "with at least 90 % of convolution and linear weights within reach",
    "median_seconds": "median seconds to attach gates",
    "max_seconds": "most seconds",
    "macs_compared": "of which torch's counter of operations has counted, too",
    "macs_as_the_witness_counts": "of these, with the same MACs, dense and compacted",
    "fewer_channels_with_heads": "where asking for heads, too, finds fewer channels",
    "compared_with_torch_pruning": "which Torch-Pruning cuts, too",
    "share_below_torch_pruning": "of these, Torch-Pruning reaches more",
    "median_ratio_of_seconds": "Torch-Pruning's seconds / ours, median",
    "large_models_raced": "of a million parameters and more, timed in turns with Torch-Pruning",
    "median_seconds_large": "of these, median seconds to attach gates",
    "torch_pruning_median_seconds_large": "of these, Torch-Pruning's median seconds",
    "tp_tried": "tried with Torch-Pruning, by its own recipe",
    "tp_runs": "of these, the pruned network runs",
    "tp_exact": "of these, exact to 1e-6",
    "kirigami_tried": "tried with torch-kirigami, by its own recipe",
    "kirigami_runs": "of these, the pruned network runs",
    "kirigami_exact": "of these, exact to 1e-6",
}


def _zoo(source: Plain, folder: Path) -> tuple[list[Section], list[str]]:
    """The file of benchmarks/zoo.py: a summary, and a row for every architecture."""
    record = _read(folder, source["file"])
    summary = record["summary"]
    lines = [Line(key, _SUMMARY.get(key, key.replace("_", " ")), {"value": Value(text=_number(value))})
             for key, value in summary.items()]  # fmt: skip
    total = Section("", [("value", "number")], lines)
    heads = [
        ("source", "library"),
        ("params", "parameters"),
        ("weight_share", "weights within reach %"),
        ("error", "fp64 error"),
        ("training_error", "in training mode"),
        ("macs", "MACs"),
        ("seconds", "seconds"),
    ]
    for name, tool in _OTHER_TOOLS.items():
        heads += [
            (f"{name}_error", f"{tool}, fp64 error"),
            (f"{name}_weight_share", "weights %"),
            (f"{name}_seconds", "seconds"),
        ]
    lines = [
        Line(row["name"], row["name"], _cells_of_model(row))
        for row in record["rows"]
        if "measure" in row.get("done", {"measure": ""})  # else only another tool has been tried yet
    ]
    notes = [record["note"]] if record.get("note") else []
    return [total, Section("Every architecture", non_empty(heads, lines), lines)], [*notes, _origin(record)]


_OTHER_TOOLS = {"tp": "Torch-Pruning", "kirigami": "torch-kirigami"}


def _cells_of_model(row: Plain) -> dict[str, Value]:
    """The cells of an architecture; what was not measured stays empty."""
    cells = {"source": Value(text=row["source"])}
    counts = [row[key]["equal"] for key in ("witness", "witness_30%", "witness_80%") if key in row]
    cells["macs"] = Value(text=("as counted" if all(counts) else "differ") if counts else "")
    forms = {
        "params": "{:,}",
        "error": "{:.0e}",
        "training_error": "{:.0e}",
        "tp_error": "{:.0e}",
        "kirigami_error": "{:.0e}",
    }
    for name in ("seconds", "tp_seconds", "kirigami_seconds"):
        forms[name] = "{:.2f}"
    for name in ("weight_share", "tp_weight_share", "kirigami_weight_share"):
        forms[name] = "{:.1%}"
    for name, form in forms.items():
        value = row.get(name, "")
        cells[name] = Value(text=(value if isinstance(value, str) else form.format(value)).removesuffix("%"))
    for name in _OTHER_TOOLS:
        if f"{name}_ended" in row and not cells[f"{name}_error"].text:
            cells[f"{name}_error"] = Value(text=row[f"{name}_ended"])
        elif f"{name}_failure" in row or f"{name}_prunes_not" in row:
            cells[f"{name}_error"] = Value(text="fails")
    return cells


_WORDS = {
    "cs": "continuous sparsification",
    "l0": "hard concrete",
    "imp": "iterative magnitude pruning",
    "gradual": "gradual magnitude pruning",
    "oneshot": "magnitude pruning at once",
    "small_dense": "small dense",
}


def _comparison(source: Plain, folder: Path) -> tuple[list[Section], list[str]]:
    """compare.json of `zerogate compare`: a row for every kind and density."""
    record = _read(folder, source["file"])
    lines = []
    for row in record["rows"]:
        name = f"{row['kind']}_{1.0 if row['density'] is None else row['density']:g}"
        figures = [search | {"total_epochs": search["epochs"]} for key, search in record["searches"].items()
                   if key.rpartition("_")[0] == name]  # fmt: skip
        cells = {column: columns.value(column, figures) for column in source["columns"]}
        label = _WORDS.get(row["kind"], row["kind"])
        if row["density"] is not None:
            label += f", {100 * row['density']:g} %"
        lines.append(Line(name.replace("_", "-"), label, cells, len(figures)))
    return [Section("", [(name, columns.column(name).head) for name in source["columns"]], lines)], [_origin(record)]


_SOURCES: dict[str, Callable[[Plain, Path], tuple[list[Section], list[str]]]] = {
    "repeats": _repeats,
    "overhead": _overhead,
    "zoo": _zoo,
    "comparison": _comparison,
}
