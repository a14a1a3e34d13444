"""What an intervention names: the components that it may change, by its primitive and its component."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from trainmem_audit.documents.interventions import ORDER_PRIMITIVES, Intervention

__all__ = ["UNDOING", "names_component", "order_carrier", "shows_later"]

UNDOING: Final = ("carry", "placebo")
"""What changes nothing."""
_WEIGHTS: Final = ("kick", "butterfly")
_LATER: Final = (*ORDER_PRIMITIVES, "freeze", "decay", "lag")
_is_weights = re.compile(r"model\d*\.params").fullmatch
_is_order = re.compile(r"(order|sampler\d*)(\..*)?").fullmatch


def order_carrier(name: str) -> bool:
    """Tell whether a component is the remaining plan of the order, or the state of a sampler."""
    return _is_order(name) is not None


def shows_later(intervention: Intervention) -> bool:
    """Tell whether what an intervention does shows in no component at the branch, and only in the steps after it."""
    return intervention.primitive in _LATER


def names_component(interventions: Iterable[Intervention], component: str) -> bool:
    """Tell whether one of the interventions names a component."""
    return any(_names(intervention, component) for intervention in interventions)


def _names(intervention: Intervention, component: str) -> bool:
    primitive = intervention.primitive
    if primitive in UNDOING:
        return False
    if primitive in (*ORDER_PRIMITIVES, "fork"):
        return order_carrier(component)
    if primitive in _WEIGHTS and intervention.component is None:
        return _is_weights(component) is not None
    wanted = [intervention.component]
    if primitive == "swap":
        wanted.append(intervention.other)
    if intervention.step_counter == "reset":
        wanted.append(_owner(intervention.component) + ".step")
    return any(name is not None and (component == name or component.startswith(name + ".")) for name in wanted)


def _owner(component: str | None) -> str:
    return (component or "").partition(".")[0]
