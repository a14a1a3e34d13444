"""Memory sources: one file per kind of component. Each knows how to find and digest its kind (DESIGN § 3).

`modules` (parameters, BatchNorm, other buffers) · `optimizers` (slots, hyper-parameters) · `schedulers` · `scalers`
(mixed precision) · `called` (which modules are teachers) · `copies` (slow and shadow weights) · `samplers` · `banks`
(memory outside of modules), with `liveness` (what a loop carries) and `entries` (containers as tensors) · `tracked`
(registered by hand) · `gradients` (carried ones) · `streams` (random generators) · `batches` (what a loader hands out)
· `restoring` (puts back) · `saved` (what a script saves).
"""
