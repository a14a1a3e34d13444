"""The factors: what may vary from run to run, how it is pinned, when it cannot matter, and what mends a script.

Not here: how a pin is made (`pinning`), which one to try (`search`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trainmem_audit.divergence import GRADIENT_PATH
from trainmem_audit.documents.findings import Difference
from trainmem_audit.documents.twice import Remedy
from trainmem_audit.pinning.pins import WATCHED, Pin

__all__ = ["FACTORS", "Factor", "Facts", "factor", "in_order_of_suspicion"]


@dataclass(frozen=True)
class Facts:
    """What the first runs tell about which factors can matter; `asked` are pins that would have an effect."""

    loaders: bool = True
    workers: int = 0
    threads: int = 2
    cuda: bool = False
    channels_last: bool = False
    hash_fixed: bool = False
    addresses: bool = True
    asked: frozenset[str] = WATCHED


def _always(facts: Facts) -> str:
    return ""


@dataclass(frozen=True)
class Factor:
    """One factor.

    Parameters
    ----------
    name:
        What people call it.
    pins:
        What is pinned together (`pinning.pins`).
    explanation:
        A sentence for the case that it is the cause.
    remedies:
        The lines that mend the script; they may depend on the facts.
    idle:
        Says why the factor cannot matter here, or nothing.
    parts:
        Narrower factors that this one consists of.
    rivals:
        Names of factors that may cure as well and be the better remedy; tried once this one has cured.
    """

    name: str
    pins: frozenset[Pin]
    explanation: str
    remedies: Callable[[Facts], tuple[Remedy, ...]]
    idle: Callable[[Facts], str] = _always
    parts: tuple[Factor, ...] = ()
    rivals: tuple[str, ...] = field(default=())


def _lines(*lines: str, note: str = "", shell: bool = False) -> Callable[[Facts], tuple[Remedy, ...]]:
    remedy = Remedy(lines=lines, note=note, shell=shell)
    return lambda _: (remedy,)


def _default_rng(facts: Facts) -> tuple[Remedy, ...]:
    plain = Remedy(lines=("rng = np.random.default_rng(0)",), note="give every default_rng() and RandomState() a seed")
    if not facts.workers:
        return (plain,)
    lines = (
        "def seed_worker(_):",
        "    info = torch.utils.data.get_worker_info()",
        "    info.dataset.rng = np.random.default_rng(info.seed)  # the name that your dataset uses",
        "",
        "torch.manual_seed(0)",
        "loader = DataLoader(..., worker_init_fn=seed_worker)",
    )
    note = "where the generator is used in worker processes, which would else all draw the same numbers"
    return plain, Remedy(lines=lines, note=note)


_STREAMS = (
    Factor(
        "start of torch's generators",
        frozenset({"rng.torch"}),
        "Nothing seeds torch's generators: initial weights, dropout and the order of shuffling loaders come from them.",
        _lines("torch.manual_seed(0)", note="before the model and the loaders are made"),
    ),
    Factor(
        "start of Python's random",
        frozenset({"rng.python"}),
        "Nothing seeds Python's `random`, and the training depends on what it draws.",
        _lines("random.seed(0)", note="at the top of the script"),
    ),
    Factor(
        "start of NumPy's global generator",
        frozenset({"rng.numpy"}),
        "Nothing seeds `np.random`, and the training depends on what it draws.",
        _lines("np.random.seed(0)", note="at the top of the script"),
    ),
    Factor(
        "NumPy generators without a seed",
        frozenset({"rng.numpy.entropy"}),
        "A NumPy generator is made without a seed (`default_rng()`, `RandomState()`, `np.random.seed()`), so it asks "
        "the operating system for one.",
        _default_rng,
    ),
)

FACTORS: tuple[Factor, ...] = (
    Factor(
        "random streams",
        frozenset({"rng.torch", "rng.python", "rng.numpy", "rng.numpy.entropy"}),
        "Several random generators start without a seed.",
        lambda facts: tuple(remedy for part in _STREAMS for remedy in part.remedies(facts)),
        parts=_STREAMS,
    ),
    Factor(
        "hash seed",
        frozenset({"hash"}),
        "The order of a set (or of what was made from one) depends on the hashes of strings, which Python draws anew "
        "in each process.",
        lambda _: (
            Remedy(lines=("for name in sorted(names):",), note="where a set is turned into a sequence; or"),
            Remedy(lines=("export PYTHONHASHSEED=0",), note="before Python starts", shell=True),
        ),
        idle=lambda facts: "PYTHONHASHSEED is set" if facts.hash_fixed else "",
    ),
    Factor(
        "clock",
        frozenset({"clock"}),
        "What is trained depends on the clock: a seed from the time, a schedule or a stop by elapsed time.",
        _lines("seed = 0  # not the time", note="count steps, not seconds, wherever training depends on it"),
        idle=lambda facts: "" if "clock" in facts.asked else "the script does not look at a clock",
    ),
    Factor(
        "entropy and process id",
        frozenset({"entropy"}),
        "A seed or a value comes from the operating system: os.urandom, secrets, uuid, the process id, or a generator "
        "seeded without a number (random.seed(), random.Random(), torch.seed()).",
        _lines("seed = 0  # a number that is written down", note="instead of what the lines above take"),
        idle=lambda facts: "" if "entropy" in facts.asked else "the script does not ask for any",
    ),
    Factor(
        "order of the script's threads",
        frozenset({"turns"}),
        "Threads of the script race: which of them is first to write, or to draw a random number, changes from run to "
        "run.",
        lambda _: (
            Remedy(lines=("thread.join()",), note="before what the thread writes is used; or"),
            Remedy(
                lines=("generator = torch.Generator().manual_seed(number)",),
                note="one per thread, where threads draw random numbers",
            ),
        ),
        idle=lambda facts: "" if "turns" in facts.asked else "the script starts no threads",
    ),
    Factor(
        "number of threads",
        frozenset({"threads"}),
        "An operation adds numbers in the order in which torch's threads come to it, or the number of threads itself "
        "changes from run to run.",
        _lines("torch.set_num_threads(1)", note="or any fixed number, where only the number varies"),
        idle=lambda facts: "torch computes on one thread" if facts.threads <= 1 else "",
        rivals=("deterministic algorithms",),
    ),
    Factor(
        "deterministic algorithms",
        frozenset({"deterministic"}),
        "An operation has no fixed order of summation, such as index_put_ or scatter_add_ with repeated indices.",
        lambda facts: (
            Remedy(lines=("torch.use_deterministic_algorithms(True)",), note="at the top of the script"),
            *(
                (Remedy(lines=("export CUBLAS_WORKSPACE_CONFIG=:4096:8",), note="before Python starts", shell=True),)
                if facts.cuda
                else ()
            ),
        ),
    ),
    Factor(
        "uninitialised memory",
        frozenset({"empty"}),
        "Memory is used that nothing was written to (`torch.empty`, `np.empty`): it holds whatever was there before.",
        _lines("torch.zeros(...)  # instead of torch.empty(...)"),
        idle=lambda facts: "" if "empty" in facts.asked else "the script makes no such arrays",
    ),
    Factor(
        "loader workers",
        frozenset({"workers"}),
        "Which worker process loads what, and when, changes the batches.",
        _lines("loader = DataLoader(..., num_workers=0)", note="or in_order=True, and no state shared by the workers"),
        idle=lambda facts: "" if facts.workers else "no loader has worker processes",
    ),
    Factor(
        "loader generator",
        frozenset({"generator"}),
        "The loader draws its order from torch's global generator, which is elsewhere when an epoch starts.",
        _lines("loader = DataLoader(..., generator=torch.Generator().manual_seed(0))"),
        idle=lambda facts: "" if facts.loaders else "no data loader was used",
    ),
    Factor(
        "cuDNN's choice of kernels",
        frozenset({"cudnn"}),
        "cuDNN times its kernels and takes the fastest, which is not always the same, or takes one whose sums vary.",
        _lines("torch.backends.cudnn.benchmark = False", "torch.backends.cudnn.deterministic = True"),
        idle=lambda facts: "" if facts.cuda else "no GPU was used",
    ),
    Factor(
        "matmul precision",
        frozenset({"precision"}),
        "Matrix products are rounded to TF32 or bfloat16 in one run and not in the other.",
        _lines('torch.set_float32_matmul_precision("highest")', "torch.backends.cudnn.allow_tf32 = False"),
        idle=lambda facts: "" if facts.cuda else "no GPU was used",
    ),
    Factor(
        "memory format",
        frozenset({"memory"}),
        "Tensors are laid out `channels_last` in one run and not in the other, which selects other kernels.",
        _lines("model.to(memory_format=torch.contiguous_format)"),
        idle=lambda facts: "" if facts.channels_last else "the code does not mention channels_last",
    ),
    Factor(
        "memory addresses",
        frozenset({"addresses"}),
        "The order of a set or dictionary of objects (modules, parameters, functions) depends on where they lie in "
        "memory.",
        _lines("items = list(dict.fromkeys(items))", note="instead of set(items): it keeps the order of insertion"),
        idle=lambda facts: "" if facts.addresses else "this system does not let a process fix them",
    ),
)


def factor(name: str) -> Factor:
    """Return the factor with this name."""
    return next(item for item in FACTORS if item.name == name)


_SUSPECTS: dict[str, tuple[str, ...]] = {
    "gradients": ("number of threads", "order of the script's threads", "uninitialised memory", "hash seed"),
    "hyper": ("clock", "random streams", "entropy and process id", "hash seed"),
    "streams": ("random streams", "clock", "entropy and process id", "order of the script's threads"),
    "data": ("random streams", "hash seed", "clock", "entropy and process id", "order of the script's threads"),
}
"""Which factors to try first, by what differs first."""


def in_order_of_suspicion(difference: Difference) -> list[Factor]:
    """Return all factors, those first that usually cause such a difference. A guess: only experiments decide."""
    first = _SUSPECTS[_kind(difference)]
    return [*map(factor, first), *(item for item in FACTORS if item.name not in first)]


def _kind(difference: Difference) -> str:
    blame = difference.blame
    if blame == GRADIENT_PATH:
        return "gradients"
    if blame.startswith("scheduler") or blame.endswith(".hyper"):
        return "hyper"
    if any(item.component.startswith("rng.") for item in difference.components):
        return "streams"
    return "data"
