"""The arguments of commands that take a finished run."""

from __future__ import annotations

from zerogate.errors import ConfigError


def run_arguments(command: str, arguments: list[str]) -> tuple[str, str, list[str]]:
    """The run folder, which checkpoint of it (`last` unless given), and the overrides of its configuration.

    Args:
        command: its name, for messages.
        arguments: RUN [which=best|last] [KEY=VALUE ...], in any order.

    Raises:
        ConfigError: there is not exactly one run folder among them.
    """
    folders = [argument for argument in arguments if "=" not in argument]
    if len(folders) != 1:
        raise ConfigError(
            f"{command} takes one run folder, got {len(folders)}; write zerogate {command} RUN [KEY=VALUE ...]"
        )
    which = "last"
    overrides = []
    for argument in arguments:
        if argument.startswith("which="):
            which = argument.removeprefix("which=")
        elif argument != folders[0]:
            overrides.append(argument)
    return folders[0], which, overrides
