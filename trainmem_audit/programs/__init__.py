"""Programs: training written so that it can be branched in memory.

A factory returns a `Program`: model, optimizer, data order, whatever else carries memory, what one step does and what
is observed. `live` runs one, copies its whole state and puts it back; `block` runs a prefix and the arms that leave it,
each as a recorded run. Not here: which arms a study has, and what its numbers say (`trainmem_audit.study`).
"""

from trainmem_audit.programs.order import Batch, KeyedOrder, LoaderOrder, Order
from trainmem_audit.programs.program import Probe, Program

__all__ = ["Batch", "KeyedOrder", "LoaderOrder", "Order", "Probe", "Program"]
