"""HTTP service of a detector: `fcos serve`. It needs the packages of the extra `serve`."""

from importlib.util import find_spec

from ..errors import ConfigError

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def require_packages() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        ConfigError: a package is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f'fcos serve: not installed: {", ".join(missing)}; type: pip install "fcos-vision[serve]"')
