"""Memory sources: one file per kind of component. Each knows how to find and digest its kind (DESIGN § 3).

`modules` (parameters, BatchNorm, other buffers) · `optimizers` (slots, hyper-parameters) · `schedulers` · `scalers`
(mixed precision) · `called` (which modules are teachers) · `streams` (random generators) · `batches` (what a
loader hands out).
"""
