"""The ``pipeserve`` command. A command imports what it needs when it runs: the rest of the time it starts fast."""
