"""Whether what is written in C was built, and is used.

It is optional: without a compiler, the service installs and runs without it. JUMPTABLE_PURE_PYTHON=1 leaves it out
where it was built, to compare both.
"""

import importlib.util
import os
from typing import Final

is_built: Final = all(
    importlib.util.find_spec(name) is not None for name in ("app.bpf._element", "app.server._hot_step")
)
is_used: Final = is_built and os.environ.get("JUMPTABLE_PURE_PYTHON", "0") in {"", "0"}


def told() -> str:
    """Return which one runs, in words."""
    if is_used:
        return "C extension"
    return "pure Python, as JUMPTABLE_PURE_PYTHON says" if is_built else "pure Python: the C extension was not built"
