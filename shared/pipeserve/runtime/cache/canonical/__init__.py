"""The canonical form of a value: bytes that are the same for two values only if a step could not tell them apart.

Cache keys are made of it. It differs from ``pickle`` in that neither the order of a dict or set, nor identity, nor the
layout of an array leaves a trace; and from ``==`` in that types count: ``1``, ``1.0`` and ``True`` differ, as do a list
and a tuple. It is the same in every process, so it can address what processes share.

Each form begins with a byte for its kind, and what is of variable length in it is counted, so no two values run into
one. A form over 256 bytes stands as its digest inside others. What has no canonical form is refused, never guessed.
"""
