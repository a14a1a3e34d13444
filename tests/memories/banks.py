"""Memory outside of modules and optimizers: queues, memory banks, replay buffers, traces, averages, gradients."""

from __future__ import annotations

from pathlib import Path

from tests.shapes import Change, Shape

__all__ = ["ROWS"]

_MEMORY = Path(__file__).resolve().parent.parent / "memory"
_SGD = {"model.params": "S3", "optimizer.hyper": "S1"}
_MOMENTUM = {**_SGD, "optimizer.momentum": "S1"}
_ADAM = {**_SGD, **{f"optimizer.{slot}": "S1" for slot in ("exp_avg", "exp_avg_sq", "step")}}


def _row(name: str, script: str, steps: int, inventory: dict[str, str], *changes: Change) -> Shape:
    return Shape(name, (script,), changes, steps, folder=_MEMORY, inventory=inventory)


ROWS = (
    _row(
        "MoCo: the queue is a tensor of the training function, bound anew",
        "moco.py",
        10,
        {**_MOMENTUM, "teacher.params": "S5", "bank.queue": "S4"},
        Change("[-KEYS:]\n", "[-KEYS:].roll(int(step == 5), 0)\n", "bank.queue", 6),
        Change("            follow(", "            (step != 4) and follow(", "teacher.params", 4),
    ),
    Shape(
        "MoCo: queue and pointer are buffers of the module",
        ("moco_buffer.py",),
        (Change("% self.queue.shape[1]", "% (self.queue.shape[1] - 8)", "model.buffers", 2),),
        8,
        sources=frozenset({*_MOMENTUM, "model.buffers"}),
        folder=_MEMORY,
    ),
    _row(
        "hidden state that windows hand on",
        "hidden.py",
        12,
        {**_SGD, "model2.params": "S3", "bank.hidden": "S4"},
        Change("rnn(x, hidden)\n", "rnn(x, hidden)\n        hidden = hidden * (start != 12)\n", "bank.hidden", 3),
    ),
    _row(
        "nothing is carried: batches, outputs, logs, meters, the best weights so far",
        "no_banks.py",
        9,
        _SGD,
        Change("lr=0.05", "lr=0.06", "optimizer.hyper", 0),
    ),
    _row(
        "memory bank on a loss object, in no state_dict",
        "memory_bank.py",
        12,
        {**_ADAM, "bank.criterion.memory": "S4"},
        Change("MOMENTUM = 0.5", "MOMENTUM = 0.6", "bank.criterion.memory", 1),
    ),
    _row(
        "DQN: named tuples in a deque, soft target",
        "replay_tuples.py",
        26,
        {
            **_ADAM,
            "optimizer.max_exp_avg_sq": "S1",
            "teacher.params": "S5",
            "bank.memory.memory": "S4",
            "bank.state": "S4",
        },
        Change("torch.tensor([float(cell == 6)])", "torch.tensor([1.0 - (cell != 6)])"),
        Change("following, reward)", "following, reward + (len(memory) == 14))", "bank.memory.memory", 7),
        Change("weights[key] * TAU", "weights[key] * TAU * (len(memory) != 12)", "teacher.params", 5),
    ),
    _row(
        "Q-learning from a ring buffer of NumPy arrays",
        "replay_ring.py",
        20,
        {
            **_ADAM,
            "teacher.params": "S5",
            "bank.buffer": "S4",
            "bank.buffer.states": "S4",
            "bank.buffer.nexts": "S4",
            "bank.buffer.actions": "S4",
            "bank.buffer.rewards": "S4",
            "bank.state": "S4",
        },
        Change("[self.ptr] = reward", "[self.ptr] = reward if self.size < 14 else 0.5", "bank.buffer.rewards", 6),
        Change("(self.ptr + 1) % self.capacity", "(self.ptr + 1) % (self.capacity - 1)", "bank.buffer", 6),
    ),
    _row(
        "prioritized replay: a sum tree, transitions in a list",
        "prioritized.py",
        20,
        {
            **_MOMENTUM,
            "bank.replay": "S4",
            "bank.replay.tree": "S4",
            "bank.replay.tree.tree": "S4",
            "bank.replay.tree.data": "S4",
        },
        Change("ALPHA = 0.6", "ALPHA = 0.5", "bank.replay.tree.tree", 1),
    ),
    _row(
        "Hebbian trace carried by the loop",
        "hebbian.py",
        10,
        {**_ADAM, "bank.hebb": "S4"},
        Change("net(x, hebb)\n", "net(x, hebb)\n        hebb = hebb * (1 - 0.5 * (step == 5))\n", "bank.hebb", 5),
    ),
    _row(
        "average of the weights in a dictionary of the training function",
        "ema_local.py",
        9,
        {**_MOMENTUM, "bank.average": "S5"},
        Change("DECAY = 0.8", "DECAY = 0.7", "bank.average", 1),
    ),
    _row(
        "gradients that are carried over steps",
        "leftover.py",
        10,
        {**_SGD, "model.grads": "S1"},
        Change("step % 3 == 0", "step % 3 == 0 and step != 6", "model.grads", 6),
    ),
    _row(
        "trainer class: a deque of batches, a shadow dictionary, losses that draw the samples",
        "trainer.py",
        12,
        {**_ADAM, "average.shadow": "S1", "bank.keys": "S4", "bank.sample_loss": "S4"},
        Change("self.keys.append(out.detach())", "self.keys.append(out.detach() * (1 + (step == 6)))", "bank.keys", 7),
        Change("self.sample_loss[idx] = per", "self.sample_loss[idx] = (step != 6) * per", "inputs", 7),
        Change("mul_(0.9)", "mul_(0.8)", "average.shadow", 1),
    ),
    _row(
        "a loss with a queue and its pointer as buffers",
        "queue_loss.py",
        12,
        {**_MOMENTUM, "teacher.buffers": "S4"},
        Change("(p + len(k)) %", "(p + len(k) * (p != 8)) %", "teacher.buffers", 1),
    ),
)
