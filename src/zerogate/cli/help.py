"""The help of commands that take a configuration, read from the comments in its files, without loading torch or Hydra.

YAML parsers drop comments, so the lines are read as text: `key: value  # meaning`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
_OWN_ROOTS = {"compare": ("compare", "tickets"), "tickets": ("tickets",)}
"""Files of `configs/` that a command has on top of config.yaml."""


def keys_help(command: str, examples: str) -> str:
    """Groups with their options, keys with their defaults and meanings, and examples."""
    return "\n".join([*_help_lines(command), f"\n{examples}"])


def _help_lines(command: str) -> Iterator[str]:
    roots = [CONFIGS / f"{name}.yaml" for name in (*_OWN_ROOTS.get(command, ()), "config")]
    defaults = dict(line for root in roots for line in re.findall(r"^  - (\w+): (\w+)", root.read_text(), re.MULTILINE))
    yield f"zerogate {command} [KEY=VALUE ...]: Hydra overrides of the configuration below\n"
    yield "Groups (GROUP=OPTION)"
    groups = sorted(path for path in CONFIGS.iterdir() if path.name in defaults)
    for group in groups:
        options = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        yield f"  {group.name} (default {defaults[group.name]}): {options}"
    yield "\nKeys"
    for root in roots:
        yield from _keys(root)
    for group in groups:
        if group.name not in ("experiment", "ticket", "gate_scheduler"):  # the last has the keys of scheduler
            option = "multistep" if group.name == "scheduler" else defaults[group.name]
            yield f"\nKeys of {group.name}={option}"
            yield from _keys(group / f"{option}.yaml", f"{group.name}.")


def _keys(path: Path, prefix: str = "") -> Iterator[str]:
    """`key=value  meaning` for every key of a file, with the names of the keys that enclose it in front."""
    parents: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        match = re.match(r"( *)(\w+):\s*([^#]*?)\s*(#.*)?$", line)
        if match is None or match[2] == "defaults":
            continue
        indent = len(match[1])
        parents = [(depth, name) for depth, name in parents if depth < indent]
        if not match[3]:
            parents.append((indent, match[2]))
            continue
        key = f"{prefix}{''.join(f'{name}.' for _, name in parents)}{match[2]}={match[3]}"
        yield f"  {key:42} {(match[4] or '').removeprefix('#').strip()}".rstrip()
