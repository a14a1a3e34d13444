"""Streams of Python and NumPy: state out, and for the global Mersenne Twisters state in.

No torch here, for it may not be imported yet. A Mersenne Twister's bytes are the 624 words and the position as
little-endian uint32; a cached second normal deviate is kept beside them and enters the digest. Reading a state draws
nothing.
"""

from __future__ import annotations

import base64
import random
import sys
from array import array
from typing import Any

from blake3 import blake3

from trainmem_audit.canonical import float_text, line_bytes, loads_strict, parse_float_text
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.errors import FormatError

__all__ = [
    "bit_generator_bytes",
    "generator_stream",
    "numpy_digest",
    "numpy_stream",
    "plain_state",
    "python_digest",
    "python_stream",
    "restore_generator",
    "restore_twister",
    "twister_digest",
]


def python_stream(generator: Any = random) -> Stream:
    """Return the state of a `random.Random`, by default of Python's global generator."""
    _, words, gauss = generator.getstate()
    return _stream("python", array("I", words).tobytes(), gauss)


def numpy_stream() -> Stream:
    """Return the state of NumPy's global (legacy) generator; `numpy.random` must be imported already."""
    return _stream("numpy", *_numpy_bytes())


def generator_stream(generator: Any) -> Stream:
    """Return the state of a `numpy.random.Generator`, as the canonical JSON of its bit generator's state."""
    algorithm = type(generator.bit_generator).__name__.lower()
    state = base64.b64encode(bit_generator_bytes(generator)).decode()
    return Stream(library="numpy", algorithm=algorithm, device="cpu", state=state)


def bit_generator_bytes(generator: Any) -> bytes:
    """Return the state of a NumPy generator's bit generator as JSON, with integers and words as text."""
    return line_bytes(plain_state(generator.bit_generator.state))


def plain_state(value: Any) -> Any:
    """Return the state of a bit generator with integers and words as text."""
    if isinstance(value, dict):
        return {key: plain_state(member) for key, member in value.items()}
    return value.tobytes().hex() if hasattr(value, "tobytes") else str(value)


def python_digest(state: tuple[Any, ...]) -> str:
    """Return the hex digest of what `random.getstate()` gave."""
    return _digest(array("I", state[1]).tobytes(), state[2])


def twister_digest(key: bytes, position: int, gauss: float | None) -> str:
    """Return the hex digest of a Mersenne Twister of NumPy's: words, position, cached deviate."""
    return _digest(key + int(position).to_bytes(4, "little"), gauss)


def numpy_digest() -> str:
    """Return the hex digest of NumPy's global generator."""
    return _digest(*_numpy_bytes())


def restore_twister(stream: Stream) -> None:
    """Set the global generator of Python or NumPy to the state of `stream`.

    Raises
    ------
    FormatError
        If the state has not the form of its library.
    """
    try:
        words = array("I")
        words.frombytes(base64.b64decode(stream.state))
        gauss = None if stream.gauss is None else parse_float_text(stream.gauss)
        if stream.library == "python":
            random.setstate((3, tuple(words), gauss))
        else:
            state = ("MT19937", words[:-1].tolist(), words[-1], int(gauss is not None), gauss or 0.0)
            sys.modules["numpy.random"].set_state(state)
    except (ValueError, TypeError, IndexError) as error:
        raise FormatError("a random state cannot be restored", where=stream.library, got=str(error)[:120]) from None


def restore_generator(stream: Stream, generator: Any) -> None:
    """Set a `random.Random` or a `numpy.random.Generator` of the script's own to the state of `stream`.

    Raises
    ------
    FormatError
        If the state is none of this kind of generator.
    """
    try:
        data = base64.b64decode(stream.state)
        if isinstance(generator, random.Random):
            words = array("I", data)
            generator.setstate((3, tuple(words), None if stream.gauss is None else parse_float_text(stream.gauss)))
        else:
            generator.bit_generator.state = _from_text(
                loads_strict(data, "a random state"), generator.bit_generator.state
            )
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError("a random state cannot be restored", where=stream.library, got=str(error)[:120]) from None


def _from_text(value: Any, pattern: Any) -> Any:
    """Undo `_as_text`: the live state tells what is a number, and what an array of words."""
    if isinstance(pattern, dict):
        return {key: _from_text(value[key], member) for key, member in pattern.items()}
    if hasattr(pattern, "tobytes"):
        return type(pattern)(pattern.shape, pattern.dtype, bytearray.fromhex(value))
    return value if isinstance(pattern, str) else int(value, 0)


def _numpy_bytes() -> tuple[bytes, float | None]:
    state: dict[str, Any] = sys.modules["numpy.random"].get_state(legacy=False)
    inner = state["state"]
    data = inner["key"].tobytes() + int(inner["pos"]).to_bytes(4, "little")
    return data, state["gauss"] if state["has_gauss"] else None


def _stream(library: str, data: bytes, gauss: float | None) -> Stream:
    members = {"library": library, "algorithm": "mt19937", "device": "cpu"}
    state = base64.b64encode(data).decode()
    return Stream.model_validate({**members, "state": state, "gauss": None if gauss is None else float_text(gauss)})


def _digest(data: bytes, gauss: float | None) -> str:
    return blake3(data if gauss is None else data + float_text(gauss).encode()).hexdigest()
