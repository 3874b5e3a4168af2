"""What other libraries' messages mean for somebody who wrote a configuration.

Hydra, OmegaConf and Python say what was wrong in English alone: their exceptions carry no key, no option and no argument.
So their sentences are read here, and nowhere else. A message that is not recognised is passed on as it is, with a hint.
"""

from __future__ import annotations

import re

from zerogate.training.config.keys import Command


def explain(error: Exception, command: Command = "train") -> str:
    """One line for an error of Hydra's or OmegaConf's: what is wrong, and what to write instead."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if re.match(r"In '\w+': Could not find", lines[0]) and len(lines) > 1 and lines[1].startswith("Available"):
        missing = lines[0].split("'")[3]
        group, _, option = missing.partition("/")
        options = [line for line in lines[2:] if "=" not in line and not line.startswith("Config search path")]
        return f"unknown {group} {option!r}; choose one of {', '.join(options)}"
    if lines[0].startswith("Could not override"):
        key = lines[0].split("'")[1]
        return f"no such key {key!r}; `zerogate {command} --help` lists them, +{key}=VALUE adds a new one"
    if type(error).__name__ in ("OverrideParseException", "LexerNoViableAltException") or "missing EQUAL" in str(error):
        return f"cannot read the override {lines[0].removeprefix('Error parsing override ')}; write key=value"
    return f"{' '.join(lines)}; `zerogate {command} --help` lists the keys"


def unexpected_argument(error: Exception) -> str | None:
    """The keyword argument that a call did not take, by Python's `TypeError`; None for another error."""
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return match[1] if match else None
