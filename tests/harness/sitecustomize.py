"""Imported by the interpreter itself in every arm of the zoo, before the script; both arms run the same file.

- `ZOO_STREAMS`: a file with the start states that a recorded run had, and the entropy that its unseeded generators of
  NumPy took; a bare run takes them as its own.
- `ZOO_CLOCK`: where the module `time` stands still.
- `ZOO_ENDING`: where to write, when the process ends, a digest of everything that is left: random states, settings of
  torch, and every tensor of every module and optimizer that is still alive, with its strides.
"""

import atexit
import importlib.abc
import json
import os
import random
import sys
import time
from pathlib import Path


class _Finder(importlib.abc.MetaPathFinder):
    """Calls `action` when the module was imported; the other finders find it."""

    def __init__(self, name, action):
        self.name, self.action = name, action

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in sys.meta_path)))
        real, action = spec.loader.exec_module, self.action

        def exec_module(module):
            real(module)
            del spec.loader.exec_module
            action(module)

        spec.loader.exec_module = exec_module
        return spec


def take_streams(path):
    streams = json.loads(Path(path).read_text())

    def numpy(module):
        words = streams["numpy"]
        module.set_state(("MT19937", words[:-1], words[-1], 0, 0.0))
        entropy = iter(streams["numpy.entropy"])
        sys.modules["numpy.random.bit_generator"].randbits = lambda bits: next(entropy)

    def torch(module):
        module.set_rng_state(module.tensor(streams["torch.cpu"], dtype=module.uint8))

    random.setstate((3, tuple(streams["python"]), None))
    sys.meta_path.insert(0, _Finder("torch", torch))
    if "numpy" in streams:
        sys.meta_path.insert(0, _Finder("numpy.random", numpy))


def stop_clock(now):
    strftime, localtime = time.strftime, time.localtime
    time.time = lambda: now
    time.localtime = lambda seconds=now: localtime(seconds)
    time.strftime = lambda form, moment=None: strftime(form, moment or localtime(now))


def write_ending(path, pid):
    if os.getpid() != pid:
        return
    import gc
    import hashlib

    def digest(data):
        return hashlib.sha256(data).hexdigest()[:16]

    found = {"python": digest(repr(random.getstate()).encode())}
    if "numpy.random" in sys.modules:
        numpy_random = sys.modules["numpy.random"]
        found["numpy"] = digest(repr(numpy_random.get_state(legacy=False)).encode())
        generators = [item for item in gc.get_objects() if issubclass(type(item), numpy_random.Generator)]
        found["numpy.entropy"] = [item.bit_generator.seed_seq.entropy for item in generators]
        found["numpy.generators"] = [digest(repr(item.bit_generator.state).encode()) for item in generators]
    torch = sys.modules.get("torch")
    if torch is not None:

        def tensors(state):
            named = [(str(name), tensor.detach()) for name, tensor in state if isinstance(tensor, torch.Tensor)]
            return [[name, str(tensor.dtype), tensor.stride(), content(tensor)] for name, tensor in named]

        def content(tensor):
            return digest(tensor.contiguous().view(-1).view(torch.uint8).numpy())

        gc.collect()
        alive = [item for item in gc.get_objects() if issubclass(type(item), torch.nn.Module | torch.optim.Optimizer)]
        found["torch"] = digest(torch.get_rng_state().numpy())
        found["alive"] = sorted(
            [type(item).__qualname__, getattr(item, "training", None), tensors(_state(item, torch))] for item in alive
        )
        found["settings"] = [
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            str(torch.get_default_dtype()),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.is_autocast_enabled("cpu"),
        ]
    Path(path).write_text(json.dumps(found, default=str, indent=1))


def _state(item, torch):
    if isinstance(item, torch.nn.Module):
        return [*item.named_parameters(), *item.named_buffers()]
    params = [param for group in item.param_groups for param in group["params"]]
    slots = [(f"{n}.{key}", value) for n, p in enumerate(params) for key, value in (item.state.get(p) or {}).items()]
    return slots + [(f"{n}.grad", p.grad) for n, p in enumerate(params)]


if "ZOO_ENDING" in os.environ:
    parent = int(os.environ.setdefault("ZOO_PID", str(os.getpid())))
    if parent == os.getpid():  # a recording replaces its process by another one, which keeps the id
        atexit.register(write_ending, os.environ["ZOO_ENDING"], parent)
        if "ZOO_STREAMS" in os.environ:
            take_streams(os.environ["ZOO_STREAMS"])
    if "ZOO_CLOCK" in os.environ:
        stop_clock(float(os.environ["ZOO_CLOCK"]))
