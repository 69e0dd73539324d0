"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc

_YOUNG_OBJECTS = 10_000  # allocated, net, before the young are looked through; Python's own 700 to 2,000 is for scripts


def settle_memory() -> None:
    """Call once all that lives as long as the process is loaded: the collector never looks at it again.

    With a library such as scikit-learn loaded, a full collection otherwise takes about 100 ms, in the middle of a call.
    """
    gc.collect()
    gc.freeze()
    _, *older = gc.get_threshold()
    gc.set_threshold(_YOUNG_OBJECTS, *older)
