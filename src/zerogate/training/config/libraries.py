"""What the configuration takes from Hydra and OmegaConf, which come with an extra of zerogate.

Everything here is imported through this file, so that one place says how to install what is missing.
"""

from __future__ import annotations

from zerogate.errors import ConfigError

try:
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException
except ModuleNotFoundError as error:
    raise ConfigError(f"training by configuration needs {error.name}; pip install 'zerogate[train]'") from error

__all__ = [
    "DictConfig",
    "HydraException",
    "ListConfig",
    "OmegaConf",
    "OmegaConfBaseException",
    "OverridesParser",
    "hydra",
    "open_dict",
]
