"""Replay: runs the recorded command again in a scratch copy, and compares its step log with the signed one as it grows.

`scratch` (the tree, the inputs, the arguments) · `child` (the process: profile imposed, watched, ended) · `replay` (the
comparison and its verdict) · `segments` (the same from snapshot to snapshot). The parent needs no torch; the child runs
`recording.launcher`.
"""

from trainmem_audit.replaying.replay import ReplayOptions, parse_mode, replay
from trainmem_audit.replaying.segments import Draw

__all__ = ["Draw", "ReplayOptions", "parse_mode", "replay"]
