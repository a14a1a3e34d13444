"""The pairing certificate: whether two arms differ in nothing but the intervention, from their step logs alone.

An effect is causal for a noise path when two arms are equal up to the branch, differ there by the intervention alone
and share all exogenous noise after it (STANDARD § 3). Four clauses, each decided from the lines of the two logs:

(1) `prefix`: equal components, order, inputs and random streams at every step up to the branch, and right at it;
(2) `intervention`: right after it the components that differ are those that it names, and no stream was moved by it;
(3) `order`: the same samples at equal steps after it, or, for order primitives, the same multiset inside the windows;
(4) `streams`: every shared random stream has equal digests at equal steps after it.

Both logs are read in step with each other, in memory that does not grow with the steps. It does not check the bytes
(`verify` does), reads no snapshot and judges no effect.
"""

from __future__ import annotations

from trainmem_audit.pairing.arms import Arm
from trainmem_audit.pairing.certificate import certify
from trainmem_audit.pairing.names import names_component
from trainmem_audit.pairing.values import value_of

__all__ = ["Arm", "certify", "names_component", "value_of"]
