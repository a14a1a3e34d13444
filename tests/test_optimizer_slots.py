"""Every optimizer of `torch.optim`: each slot is a component with its tensors, and a lifetime where a formula has one.

So are the wrappers: SAM and Lookahead, as they are written in the wild.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainmem_audit.sources.optimizers import OptimizerSource, nested

Slots = dict[str, tuple[str, float | None]]
_STEP: Slots = {"step": ("macro", None)}
_ADAM: Slots = _STEP | {"exp_avg": ("micro", 10.0), "exp_avg_sq": ("micro", 1000.0)}
_LINE: Slots = {
    **dict.fromkeys(("func_evals", "n_iter"), ("macro", None)),
    **dict.fromkeys(("d", "t", "H_diag"), ("micro", None)),
    **dict.fromkeys(("old_dirs", "old_stps", "ro", "al"), ("micro", 7.0)),
    **dict.fromkeys(("prev_flat_grad", "prev_loss"), ("micro", 1.0)),
}
_MAXIMUM: Slots = {"exp_avg": ("micro", 2.0), "exp_avg_sq": ("micro", 4.0), "max_exp_avg_sq": ("macro", None)}
_CENTRED: Slots = {"square_avg": ("micro", 4.0), "grad_avg": ("micro", 4.0), "momentum": ("micro", 2.0)}
TABLE: tuple[tuple[str, dict[str, Any], Slots], ...] = (
    ("Adadelta", {"rho": 0.75}, _STEP | {"square_avg": ("micro", 4.0), "acc_delta": ("micro", 4.0)}),
    ("Adafactor", {}, _STEP | dict.fromkeys(("row_var", "col_var", "variance"), ("micro", None))),
    ("Adagrad", {}, _STEP | {"sum": ("macro", None)}),
    ("Adam", {}, _ADAM),
    ("Adam", {"amsgrad": True, "betas": (0.5, 0.75)}, _STEP | _MAXIMUM),
    ("Adam", {"fused": True}, _ADAM),
    ("Adam", {"foreach": True}, _ADAM),
    ("AdamW", {"maximize": True}, _ADAM),
    ("Adamax", {}, _STEP | {"exp_avg": ("micro", 10.0), "exp_inf": ("micro", 1000.0)}),
    ("ASGD", {}, _STEP | dict.fromkeys(("eta", "mu", "ax"), ("macro", None))),
    ("LBFGS", {"history_size": 7, "max_iter": 5, "line_search_fn": "strong_wolfe"}, _LINE),
    ("Muon", {"momentum": 0.75}, {"momentum": ("micro", 4.0)}),
    ("NAdam", {}, _ADAM | {"mu_product": ("macro", None)}),
    ("RAdam", {}, _ADAM),
    ("RMSprop", {"alpha": 0.75, "momentum": 0.5, "centered": True}, _STEP | _CENTRED),
    ("Rprop", {}, _STEP | {"prev": ("micro", 1.0), "step_size": ("macro", None)}),
    ("SGD", {}, {}),
    ("SGD", {"momentum": 0.75, "dampening": 0.5}, {"momentum": ("micro", 4.0)}),
    ("SGD", {"momentum": 0.75, "nesterov": True, "fused": True}, {"momentum": ("micro", 4.0)}),
    ("SparseAdam", {}, _ADAM),
)


def test_the_table_has_every_optimizer_of_torch() -> None:
    found = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    assert found == {name for name, _, _ in TABLE}


@pytest.mark.parametrize(("name", "settings", "slots"), TABLE, ids=[f"{row[0]} {row[1]}" for row in TABLE])
def test_every_slot_is_a_component_with_its_lifetime(name: str, settings: dict[str, Any], slots: Slots) -> None:
    torch.manual_seed(0)
    sparse = name == "SparseAdam"
    model = nn.Embedding(5, 3, sparse=True) if sparse else nn.Linear(4, 3, bias=name != "Muon")
    given = torch.tensor([1, 2]) if sparse else torch.ones(2, 4)
    optimizer = getattr(torch.optim, name)(model.parameters(), **settings)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(given).tanh().pow(2).mean()
        loss.backward()
        return loss

    for _ in range(3):
        closure()
        optimizer.step(closure) if name == "LBFGS" else optimizer.step()
    names = {id(param): key for key, param in model.named_parameters()}
    components = {item.name: item for item in OptimizerSource("optimizer", optimizer, names.get).components()}
    hyper = components.pop("optimizer.hyper")
    assert hyper.values["class"] == name
    assert {"lr"} | {key for key in settings if key != "betas"} <= hyper.values["groups"][0].keys()
    found = {key.removeprefix("optimizer."): item.labels for key, item in components.items()}
    assert {
        key: (item.lifetime, item.lifetime_steps and round(item.lifetime_steps, 6)) for key, item in found.items()
    } == slots
    held = {
        id(value) for state in optimizer.state.values() for value in _flat(state) if isinstance(value, torch.Tensor)
    }
    assert {id(tensor) for item in components.values() for _, tensor in item.tensors or ()} == held


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for member in value.values() for leaf in _flat(member)]
    return [leaf for member in value for leaf in _flat(member)] if isinstance(value, list) else [value]


class Wrapper(torch.optim.Optimizer):
    """SAM's shape: groups shared with the optimizer inside, state of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"rho": 0.05, "lr": 0.1})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.5)
        self.param_groups = self.base_optimizer.param_groups
        self.counter = 3


def test_a_wrapper_is_found_from_within_and_from_without_and_repeats_nothing() -> None:
    model = nn.Linear(4, 3)
    wrapper = Wrapper(model.parameters())
    inner = wrapper.base_optimizer
    assert nested(inner) == nested(wrapper) == [inner, wrapper]
    wrapper.state[model.weight]["old_p"] = torch.ones(3, 4)
    names = {id(param): key for key, param in model.named_parameters()}
    found = list(OptimizerSource("optimizer2", wrapper, names.get, inner).components())
    assert [item.name for item in found] == ["optimizer2.old_p", "optimizer2.attributes"]
    assert found[1].values == {"counter": 3}
    assert nested(torch.optim.SGD(model.parameters(), lr=0.1))[1:] == []
