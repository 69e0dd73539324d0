"""What authors write against: steps, pipelines, capture and the running step's context. Pure: no I/O, no server."""
