"""The WebSocket ``/stream``: many jobs over one connection, both ways."""
