"""python-tuf's client without the HTTP library it brings: metadata comes over our own channels.

`tuf.ngclient` imports urllib3 whether or not it is used, which costs an idle device 3 MB for a
class that nobody here makes. A stand-in takes the place of that one module during the import.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["FetcherInterface", "Updater", "UpdaterConfig"]

_FETCHER = "tuf.ngclient.urllib3_fetcher"


class Urllib3Fetcher:
    """Stands where python-tuf exports its own fetcher; an updater without one of ours fails."""

    def __init__(self) -> None:
        raise RuntimeError("there is no HTTP here: give the updater a fetcher")


@contextmanager
def _stand_in() -> Iterator[None]:
    if _FETCHER in sys.modules:
        yield
        return
    module = ModuleType(_FETCHER)
    module.__dict__["Urllib3Fetcher"] = Urllib3Fetcher
    sys.modules[_FETCHER] = module
    try:
        yield
    finally:
        # Whoever asks for the module itself gets the real one.
        del sys.modules[_FETCHER]


with _stand_in():
    from tuf.ngclient import Updater, UpdaterConfig
    from tuf.ngclient.fetcher import FetcherInterface
