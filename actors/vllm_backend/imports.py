"""How vLLM is imported: with the garbage collector at rest, and from compiled modules wherever it is installed. Owns only
that."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source, find_spec
from pathlib import Path


@contextmanager
def uncollected() -> Iterator[None]:
    """Collecting garbage while five thousand modules load costs a fifth of the import and finds nothing. What was loaded is
    frozen afterwards: it does not slow later collections, and forks go on to share it."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def compiled_modules(package: str = "torch") -> dict[str, str]:
    """Variables for a Python that is to import `package`, and much else that was installed with it: compiled modules are
    kept with vLLM's cache where the installation has none and will get none, which is so in containers
    (PYTHONDONTWRITEBYTECODE, or read-only). Every start would compile them again, which takes as long as the import."""
    spec = find_spec(package)
    if sys.pycache_prefix or spec is None or spec.origin is None or Path(cache_from_source(spec.origin)).exists():
        return {}
    if not sys.dont_write_bytecode and os.access(os.path.dirname(spec.origin), os.W_OK):
        return {}
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.environ.get("VLLM_CACHE_ROOT") or f"{user}/vllm"
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{root}/rollout_ray/bytecode"}
