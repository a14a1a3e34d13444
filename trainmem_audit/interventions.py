"""The text form of interventions: `PRIMITIVE[:COMPONENT][:PARAMETER…][@STEP]`, as on a command line.

    reset:optimizer.exp_avg:keep@200        noise:optimizer.momentum:0.01:7@200     swap_windows:order:0-20:40-60@100
    transplant:optimizer.momentum:runs/a#99@200    kick:0.001:7@200                 fork:7:order@200

`parse` and `text_of` are inverse to one another. The characters `:`, `@`, `#`, `,` and `%` of a name are written as
`%3A` and so on. In what is parsed, `-` and `_` are alike in the words of the form, and a float may have any spelling
that Python reads. Not here: the document (`documents.interventions`), doing it (`intervening`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import ValidationError

from trainmem_audit.canonical import float_text, parse_float_text
from trainmem_audit.contract import start_seed
from trainmem_audit.documents.interventions import (
    ORDER_PRIMITIVES,
    PARAMETERS,
    PRIMITIVES,
    Intervention,
    Moment,
    Window,
)
from trainmem_audit.errors import UsageError

__all__ = [
    "FORMS",
    "MISSED",
    "ORDER",
    "check_windows",
    "fork_of",
    "may_change",
    "parse",
    "parse_at_step",
    "split_component",
    "text_of",
]

ORDER: Final = "order"
"""What stands for the component in an intervention on the order."""
FORMS: Final = {
    "carry": "carry[:COMPONENT]",
    "placebo": "placebo[:COMPONENT]",
    "reset": "reset:COMPONENT[:keep|reset]",
    "zero": "zero:COMPONENT",
    "scale": "scale:COMPONENT:FACTOR",
    "noise": "noise:COMPONENT:SIGMA:SEED",
    "transplant": "transplant:COMPONENT:[RUN]#STEP",
    "recalibrate": "recalibrate:COMPONENT:BATCHES",
    "freeze": "freeze:COMPONENT",
    "swap-windows": "swap_windows:order:FROM-TO:FROM-TO",
    "permute-window": "permute_window:order:FROM-TO:SEED",
    "policy": "policy:order:reshuffle|with-replacement|fixed[:SEED]",
    "flush": "flush:COMPONENT[:SEED]",
    "shuffle": "shuffle:COMPONENT:SEED",
    "truncate": "truncate:COMPONENT:ENTRIES",
    "age": "age:COMPONENT:STEPS",
    "decay": "decay:COMPONENT:DECAY",
    "lag": "lag:COMPONENT:STEPS",
    "swap": "swap:COMPONENT:COMPONENT",
    "equalise": "equalise:COMPONENT:ARM",
    "fork": "fork:SEED[:KEPT[,KEPT…]]",
    "kick": "kick:SIGMA:SEED",
    "butterfly": "butterfly:SEED",
}
"""What each primitive looks like; with `@STEP` after it where it is to act after that many steps."""
MISSED: Final = "an intervention that was not made:"
"""How an entry of a record's `notRecorded` begins that names an intervention."""
_ESCAPED: Final = ":@#,%"
_LONGEST: Final = 2**20
_MOST: Final = 2**53 - 1
_COUNT: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_WINDOW: Final = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,398}")
_MEMBERS: Final = (
    *("component", "factor", "sigma", "decay", "steps", "other", "source", "windows", "policy", "seed"),
    *("step_counter", "kept"),
)
"""The members of an intervention in the order in which their texts stand."""


def fork_of(seed: str, step: int, stream: int) -> tuple[Intervention, ...]:
    """Return what redraws the random streams of a study's arm: nothing for its noise stream 0, which goes on.

    It is the same for all arms of a seed, a branch step and a noise stream, programs and scripts alike: it follows from
    these by a hash.
    """
    if stream == 0:
        return ()
    return (Intervention(primitive="fork", seed=str(start_seed(seed, f"noise stream {stream} after step {step}"))),)


def parse(text: str) -> tuple[Intervention, int | None]:
    """Return the intervention that `text` says, and the number of steps after which it acts, if it says that.

    Raises
    ------
    UsageError
        Naming the part that cannot be understood.
    """
    if len(text) > _LONGEST:
        raise UsageError("an intervention that is too long", expected=f"at most {_LONGEST} characters", got=text[:40])
    body, _, at = text.partition("@")
    step = _count(at, text, "the step after `@`") if "@" in text else None
    word, *parts = body.split(":")
    primitive = word.lower().replace("_", "-")
    if primitive not in PARAMETERS:
        near = ", ".join(name.replace("-", "_") for name in PRIMITIVES)
        raise UsageError("no such intervention", where=text[:200], expected=near, got=word[:40])
    members = {"primitive": primitive, **_members(primitive, parts, text)}
    try:
        found = Intervention.model_validate(members)
    except ValidationError as error:
        raise _unreadable(text, primitive, _reason(error)) from None
    check_windows(found, text)
    return found, step


def parse_at_step(text: str) -> tuple[Intervention, int]:
    """Return what `parse` returns where a step must be known; on the order the default is 0.

    Raises
    ------
    UsageError
        If `text` cannot be understood, or says no step.
    """
    found, step = parse(text)
    if step is None and found.primitive not in ORDER_PRIMITIVES:
        raise UsageError(
            "an intervention without a step",
            where=text[:200],
            expected=f"{FORMS[found.primitive]}@STEP",
            got="no `@`",
            remedy=f"say after how many steps it acts: {text[:100]}@200",
        )
    return found, step or 0


def text_of(intervention: Intervention, step: int | None = None) -> str:
    """Return the text that `parse` makes the same of: `scale:optimizer.momentum:0.5@200`."""
    parts = [intervention.primitive.replace("-", "_")]
    if intervention.primitive in ORDER_PRIMITIVES:
        parts.append(ORDER)
    for name in _MEMBERS:
        value = getattr(intervention, name)
        if value is not None:
            parts += _spelt(name, value)
    return ":".join(parts) + ("" if step is None else f"@{step}")


def check_windows(intervention: Intervention, where: str) -> None:
    """Demand that windows are not empty, and that two of them are equally long and do not overlap.

    Raises
    ------
    UsageError
        If they are not.
    """
    windows = intervention.windows or ()
    spelt = " and ".join(f"{window.first}-{window.to}" for window in windows)
    if any(window.first >= window.to for window in windows):
        raise UsageError("an empty window", where=where[:200], expected="FROM-TO with FROM < TO", got=spelt)
    if len(windows) == 2:
        a, b = sorted(windows, key=lambda window: window.first)
        if a.to > b.first:
            raise UsageError("windows that overlap", where=where[:200], expected="two windows apart", got=spelt)
        if a.to - a.first != b.to - b.first:
            raise UsageError("windows of different lengths", where=where[:200], expected="equal lengths", got=spelt)


def _members(primitive: str, parts: Sequence[str], text: str) -> dict[str, Any]:
    rule = PARAMETERS[primitive]
    rest = list(parts)
    if primitive in ORDER_PRIMITIVES and (not rest or rest.pop(0).lower() != ORDER):
        raise _unreadable(text, primitive, "it acts on `order` alone")
    found: dict[str, Any] = {}
    for name in _MEMBERS:
        if not rest or name not in rule.needed | rule.allowed:
            continue
        if name == "windows":
            count = 2 if primitive == "swap-windows" else 1
            found[name] = tuple(_window(part, text) for part in rest[:count])
            del rest[:count]
        elif name == "source":
            found[name], rest = _moment(":".join(rest), text), []
        else:
            found[name] = _READERS[name](rest.pop(0), text)
    if rest or rule.needed - found.keys():
        raise _unreadable(text, primitive, f"too much: {rest[0][:80]}" if rest else "something is missing")
    return found


def _window(part: str, text: str) -> Window:
    bounds = _WINDOW.fullmatch(part)
    if bounds is None or int(bounds[2]) > _MOST:
        raise UsageError("not a window", where=text[:200], expected="FROM-TO, in batches", got=part[:80])
    return Window.model_validate({"from": int(bounds[1]), "to": int(bounds[2])})


def _moment(part: str, text: str) -> Moment:
    run, sign, step = part.rpartition("#")
    if not sign:
        raise UsageError("not the state of a run", where=text[:200], expected="[RUN]#STEP", got=part[:80])
    return Moment(run=_name(run, text) if run else None, step=_count(step, text, "the step after `#`"))


def _name(part: str, text: str) -> str:
    name = _UNESCAPE.sub(lambda found: chr(int(found[1], 16)), part)
    if not name:
        raise UsageError("a name is empty", where=text[:200], expected="a component", got="")
    return name


def _count(part: str, text: str, what: str = "a number") -> int:
    if not _COUNT.fullmatch(part) or int(part) > _MOST:
        raise UsageError(f"{what} is none", where=text[:200], expected=f"0 to {_MOST}", got=part[:40])
    return int(part)


def _float(part: str, text: str) -> str:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError("not a finite number", where=text[:200], expected="0.5, 1e-3 …", got=part[:40])
    return float_text(value)


def _seed(part: str, text: str) -> str:
    if not _INTEGER.fullmatch(part):
        raise UsageError("not a seed", where=text[:200], expected="an integer", got=part[:40])
    return part


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))[:200]


def _word(part: str, text: str) -> str:
    return part.lower().replace("_", "-")


def _unreadable(text: str, primitive: str, why: str) -> UsageError:
    expected = f"{FORMS[primitive]}[@STEP]"
    return UsageError("not an intervention", where=text[:200], expected=expected, got=why)


_UNESCAPE: Final = re.compile("%(" + "|".join(f"{ord(sign):02X}" for sign in _ESCAPED) + ")")
_READERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "component": _name,
    "factor": _float,
    "sigma": _float,
    "decay": _float,
    "steps": _count,
    "other": _name,
    "policy": _word,
    "seed": _seed,
    "step_counter": _word,
    "kept": lambda part, text: tuple(_name(name, text) for name in part.split(",")),
}


def _spelt(name: str, value: Any) -> list[str]:
    """Return the parts that a member gives."""
    if name == "windows":
        return [f"{window.first}-{window.to}" for window in value]
    if name == "source":
        return [f"{_escaped(value.run or '')}#{value.step}"]
    if name == "kept":
        return [",".join(map(_escaped, value))]
    if name in ("factor", "sigma", "decay"):
        return [repr(parse_float_text(value))]
    return [_escaped(value) if name in ("component", "other") else str(value)]


def _escaped(name: str) -> str:
    return "".join(f"%{ord(sign):02X}" if sign in _ESCAPED else sign for sign in name)


def split_component(name: str) -> tuple[str, str]:
    """Return the component and the tensor, or what tensors lie below, that a name such as `model.buffers/queue` says.

    The tensor is empty where it says none.
    """
    component, sign, tensor = name.partition("/")
    return (component, tensor) if sign else (name, "")


def may_change(intervention: Intervention, component: str) -> bool:
    """Tell whether the intervention names `component`, by itself or with the whole source that it is of.

    `kick` and `butterfly` name the weights, a reset of moments with its step counter that counter too; `swap` both of
    the two. Those on the order and on streams name none; where a component holds a sampler's plan, it is `sampler…`.
    """
    if intervention.primitive in ("carry", "placebo", "fork"):
        return False
    if intervention.primitive in ("kick", "butterfly"):
        return component.endswith(".params") and component.startswith(("model", "optimizer"))
    if intervention.primitive in ORDER_PRIMITIVES:
        return component == ORDER or component.startswith("sampler")
    named = [split_component(intervention.component or "")[0]]
    if intervention.primitive == "swap" and intervention.other is not None:
        named.append(split_component(intervention.other)[0])
    if intervention.step_counter == "reset":
        named.append(f"{named[0].partition('.')[0]}.step")
    return any(component == name or component.startswith(f"{name}.") for name in named)
