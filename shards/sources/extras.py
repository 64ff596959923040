"""Libraries that only some sources need."""

import importlib.util

from shards.errors import MstlError


def need_extra(source: str, *modules: str) -> None:
    """Raise MstlError unless the libraries of the extra `medical` are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MstlError(
            f"source {source}",
            why=f"it needs {' and '.join(missing)}, which this installation lacks",
            remedy="Install with: pip install 'mstl[medical]'",
        )
