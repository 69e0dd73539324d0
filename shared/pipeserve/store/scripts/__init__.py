"""Everything that must happen at once in the store, as Lua behind typed functions.

A script's signature is its contract; nobody else writes a job's keys. Scripts take the time from the server, so the
clocks of API processes and workers need not agree.
"""
