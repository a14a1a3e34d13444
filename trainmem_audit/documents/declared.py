"""The author's half of an RNG contract: what `rng-contract.toml` declares of random streams, seeds and order.

Its members have the same names in the file, in the step log and in the statement. Nothing here was recorded: the rules
compare it with what was.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from trainmem_audit.documents.common import Digest, Document, Extensions, Name, Sequence
from trainmem_audit.errors import UsageError

__all__ = [
    "CONTRACT_FILE",
    "CONTRACT_VERSION",
    "Consumed",
    "DeclaredArm",
    "DeclaredContract",
    "DeclaredOrder",
    "DeclaredStream",
    "Derivation",
    "DerivationVector",
    "Pairing",
    "Purpose",
    "Scheme",
    "Stability",
    "find_contract",
    "parse_contract",
]

CONTRACT_FILE = "rng-contract.toml"
CONTRACT_VERSION = "0.1.0-draft"
_MOST_BYTES = 2**20

Purpose = Literal[
    "augment", "bootstrap", "dropout", "init", "loader", "order", "queue", "sampling", "teacher", "unknown"
]
"""What a stream is drawn from for. `loader` is the base seed that every `iter(DataLoader)` draws."""
Pairing = Literal["shared", "shared-until-branch", "independent", "sample-keyed", "uncontrolled"]
Stability = Literal["frozen", "release", "device"]
"""What the numbers of a stream depend on beside its seed: nothing, the release of its library, the device."""
Consumed = Literal["never", "before-training", "epoch-starts", "any"]
"""When a stream moves: not at all; only before the first step; there and in the first step of an epoch; whenever."""
Scheme = Literal["reshuffle", "with-replacement", "fixed"]
Sharing = Literal["shared", "independent"]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class DeclaredStream(Document):
    """One stream as the author declares it; what is left out is not declared."""

    purpose: Sequence[Purpose] | None = None
    library: Name | None = None
    algorithm: Name | None = None
    device: Name | None = None
    scope: Literal["process", "rank", "worker", "step", "sample"] | None = None
    seed: Text | None = None
    consumed: Consumed | None = None
    pairing: Pairing | None = None
    across_replicates: Sharing | None = None
    across_ranks: Sharing | None = None
    on_resume: Literal["restored", "reseeded", "fresh"] | None = None
    stability: Stability | None = None


class DerivationVector(Document):
    """One seed that the derivation gives: the values along its path, and the seed, as text."""

    path: Annotated[Sequence[Text], Field(max_length=16)]
    seed: Text


class Derivation(Document):
    """How seeds follow from the root entropy.

    `path` names what a seed depends on (pair, stream, rank, worker, epoch …), `over` the values that each of them takes
    in the study, so that collisions can be counted.
    """

    function: Name
    path: Annotated[Sequence[Name], Field(max_length=16)] = ()
    over: dict[Name, Annotated[Sequence[Text], Field(max_length=10_000)]] | None = None
    vectors: Annotated[Sequence[DerivationVector], Field(max_length=1000)] = ()


class DeclaredOrder(Document):
    """The scheme by which training batches are drawn."""

    scheme: Scheme


class DeclaredArm(Document):
    """Which streams an arm of a study shares with its control, and which it must not share."""

    shared: Sequence[Name] = ()
    different: Sequence[Name] = ()


class DeclaredContract(Document):
    """The whole of `rng-contract.toml`."""

    contract_version: Literal["0.1.0-draft"]
    root_entropy: Text | None = None
    derivation: Derivation | None = None
    streams: Annotated[dict[Name, DeclaredStream], Field(max_length=1000)] | None = None
    order: DeclaredOrder | None = None
    canary: dict[Name, Digest] | None = None
    arms: dict[Name, DeclaredArm] | None = None
    extensions: Extensions | None = None


def find_contract(given: Path | None, cwd: Path) -> DeclaredContract | None:
    """Return what the file declares that was given, or else the `rng-contract.toml` of `cwd`; `None` without either.

    Raises
    ------
    UsageError
        If it cannot be read, or is no contract.
    """
    path = cwd / CONTRACT_FILE if given is None else given
    if given is None and not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError("the RNG contract cannot be read", where=str(path), got=error.strerror or "") from None
    if len(data) > _MOST_BYTES:
        raise UsageError("the RNG contract is too long", where=str(path), expected=f"at most {_MOST_BYTES} bytes")
    return parse_contract(data, path.name)


def parse_contract(data: bytes, where: str) -> DeclaredContract:
    """Return what an `rng-contract.toml` declares.

    Raises
    ------
    UsageError
        Naming the first member that is wrong.
    """
    try:
        members = tomllib.loads(data.decode())
        return DeclaredContract.model_validate(_tuples(members))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        remedy = "docs/rng-contract.md has an example"
        raise UsageError(
            "not an RNG contract", where=f"{where}: {path}", expected=first["msg"], remedy=remedy
        ) from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8
        raise UsageError("not an RNG contract", where=where, expected="TOML", got=str(error)[:200]) from None


def _tuples(value: Any) -> Any:
    """Return TOML's lists as tuples, as the models hold them."""
    if isinstance(value, dict):
        return {name: _tuples(member) for name, member in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
