"""Pins: each takes one source of variation out of a script that runs under the launcher, without touching the script.

`pins` (their names, what each needs of the environment, and `apply`) · `callers` (who asks) · `clock` · `entropy` (the
operating system's randomness, process ids) · `turns` (threads one after another) · `settings` (of torch).

A pinned run need not have the bits of a bare one. It must run: what a pin replaces keeps its type, and other programs
of the machine, Python's own library and torch go on seeing the real clock and process ids, since they wait by them.
"""
