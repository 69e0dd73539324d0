"""Steps in processes of their own, ``@step(executor="process")``: what can be killed at any moment.

A Python thread can't be stopped, and a step that crashes takes its interpreter along. Such a step runs in a child
process instead, started afresh (never forked: this process has threads), kept warm and used again.

========== ==================================================================
place      how a child finds the step's function
messages   what parent and child say to each other
child      the child's side: runs one step after the other
channel    its end of their socket
process    the parent's side of one child
pool       hands calls to children, as :class:`ProcessPool`
========== ==================================================================
"""

from __future__ import annotations

from pipeserve.runtime.processes.place import StepPlace
from pipeserve.runtime.processes.pool import ProcessPool
from pipeserve.runtime.processes.process import ProcessDiedError

__all__ = ["ProcessDiedError", "ProcessPool", "StepPlace"]
