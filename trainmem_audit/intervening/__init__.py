"""Interventions on live memory: what STANDARD § 2 calls primitives, for every kind of component.

`apply` does one, in place, at the cut between two steps. It touches what the intervention names and nothing else, draws
from no stream of the training, and leaves the memory as it was where it raises. Not here: when it is called and what is
written of it (`recording`), the text form (`trainmem_audit.interventions`).
"""

from trainmem_audit.intervening.applying import Applied, Order, Surroundings, apply
from trainmem_audit.intervening.holding import Hold
from trainmem_audit.intervening.targets import Memory, held_by

__all__ = ["Applied", "Hold", "Memory", "Order", "Surroundings", "apply", "held_by"]
