"""L2: what a recorded checkpoint does not save, in words: what is lost, what a resumed run then does, how to mend it.

Pure. Not here: how a checkpoint is compared with the memory (`recording.checkpoints`).
"""

from __future__ import annotations

from dataclasses import dataclass

from trainmem_audit.documents.checkpoints import Checkpoint, Held, HeldVerdict
from trainmem_audit.documents.findings import Difference

__all__ = ["Loss", "blamed", "losses", "summary_text", "visibility"]

_LOST: dict[HeldVerdict, str] = {
    "absent": "does not hold it",
    "part": "holds only a part of it",
    "stale": "holds another value of it",
}


@dataclass(frozen=True)
class Loss:
    """One memory that a run resumed from the checkpoint does not get back."""

    name: str
    verdict: HeldVerdict
    found: str
    effect: str
    remedy: str

    @property
    def text(self) -> str:
        """What was found, as a sentence without its end."""
        return f"{self.name}: the checkpoint {self.found}"


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a checkpoint loses, in the order of cause; nothing for weights alone, which are for inference."""
    if checkpoint.kind == "weights":
        return []
    found = []
    if checkpoint.order is not None and checkpoint.order in _LOST:
        found.append(_loss("order", checkpoint.order))
    for name, verdict in sorted(checkpoint.streams.items(), key=lambda item: (not item[0].startswith("torch"), item)):
        if verdict in _LOST:
            found.append(_loss(f"rng.{name}", verdict))
    placed = checkpoint.order is not None and checkpoint.order not in _LOST
    components = [
        (name, held)
        for name, held in checkpoint.components.items()
        if held.verdict in _LOST and not (placed and name.startswith("sampler"))  # it is saved in a form of its own
    ]
    for name, held in sorted(components, key=lambda item: (_rank(item[0]), not item[0].endswith(".params"), item[0])):
        found.append(_loss(name, held.verdict, held))
    return found


def summary_text(checkpoint: Checkpoint) -> str:
    """Return in one line what a checkpoint does not save."""
    if checkpoint.kind == "weights":
        return "weights alone: for inference, not to go on from"
    lost = losses(checkpoint)
    if not lost:
        return "saves all memory that had changed"
    return f"does NOT save {' · '.join(loss.name for loss in lost)}"


def visibility(checkpoint: Checkpoint, component: str) -> str | None:
    """Return the measured label of a component; `None` where the checkpoint tells nothing."""
    held = checkpoint.components.get(component)
    if checkpoint.kind != "state" or held is None:
        return None
    return {"whole": "checkpointed", **dict.fromkeys(_LOST, "in-process")}.get(held.verdict)


def blamed(difference: Difference, checkpoint: Checkpoint, steps: int) -> Difference:
    """Return the first difference of a resumed run, blamed on what its checkpoint lost, where it lost anything.

    Of what is lost the first by cause that differs there is named; where none of it differs itself, because it acts
    through something else (a queue through the gradients) or is not met yet, the first of all.
    """
    lost = losses(checkpoint)
    if not lost or difference.blame in ("steps", "outcome"):
        return difference
    names = {component.component for component in difference.components}
    first = next((loss for loss in lost if _shows(loss.name) & names), lost[0])
    others = [loss.name for loss in lost if loss is not first]
    more = f" Lost as well: {', '.join(others)}." if others else ""
    explanation = (
        f"{first.name} was not in the checkpoint: what was saved after {steps} steps {first.found}, so "
        f"{first.effect}. Remedy: {first.remedy}.{more}"
    )
    return difference.model_copy(update={"blame": first.name, "explanation": explanation})


def _shows(name: str) -> set[str]:
    """Return under which names of a difference a lost memory shows itself."""
    if name == "order":
        return {"order.index", "order.content", "inputs"}
    if name.startswith("scheduler"):
        return {name, "lr", "optimizer.hyper"}
    return {name}


def _loss(name: str, verdict: HeldVerdict, held: Held | None = None) -> Loss:
    found = _LOST[verdict]
    if held is not None and held.missing:
        more = held.missing_count - len(held.missing)
        found += f" (without {', '.join(held.missing[:4])}{' …' if more > 0 or len(held.missing) > 4 else ''})"
    return Loss(name, verdict, found, *_advice(name))


def _rank(name: str) -> int:
    order = ("teacher", "bank", "model.buffers", "scheduler", "scaler", "optimizer")
    return next((rank for rank, prefix in enumerate(order) if name.startswith(prefix)), len(order))


def _advice(name: str) -> tuple[str, str]:
    """Return what a resumed run does without it, and the lines that save and load it."""
    base = name.split(".")[0].rstrip("0123456789")
    if name == "order":
        return (
            "samples of the epoch are seen twice, and others never",
            "save the position with the state that the permutation is drawn from (a sampler with a `state_dict`, or "
            "torchdata's StatefulDataLoader), or save at the end of an epoch",
        )
    if base == "rng":
        return "dropout, augmentation and shuffling draw other numbers", _rng_lines(name.removeprefix("rng."))
    if base == "scheduler":
        return (
            "the learning rate starts its schedule anew",
            "save `scheduler.state_dict()`, and load it after the optimizer's",
        )
    if base == "scaler":
        return "the loss scale starts anew, and first steps may be skipped", "save and load `scaler.state_dict()`"
    if base == "optimizer":
        return "moments and counters start anew", "save `optimizer.state_dict()`, and load it before the first step"
    if base == "teacher":
        return (
            "the average or teacher starts anew, as a copy of the student or at random",
            "save the teacher's own `state_dict()` after its update",
        )
    if name.endswith(".batchnorm"):
        return (
            "running statistics start anew, so evaluation is that of an untrained network for a while",
            "save `model.state_dict()`, which holds buffers, and not the parameters alone",
        )
    if name.endswith(".buffers") or base == "bank":
        return (
            "the queue or bank starts anew, empty or with random entries",
            "register it as a persistent buffer of what is saved, or save it beside the model",
        )
    return "training goes on from other values", "save and load it"


def _rng_lines(stream: str) -> str:
    known = {
        "python": "save `random.getstate()`, and `random.setstate(…)` after loading",
        "numpy": "save `numpy.random.get_state()`, and `numpy.random.set_state(…)` after loading",
        "torch.cpu": "save `torch.get_rng_state()`, and `torch.set_rng_state(…)` after loading",
    }
    if stream.startswith("torch.cuda"):
        return "save `torch.cuda.get_rng_state_all()`, and `torch.cuda.set_rng_state_all(…)` after loading"
    return known.get(stream, "save the generator's `get_state()` (or `bit_generator.state`), and set it after loading")
