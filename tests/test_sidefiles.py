"""The files beside the log: every frame and every index must give the digests that the log holds."""

from __future__ import annotations

import io

import pytest

from tests.logs import BATCH, FakeRun, MemoryReader
from trainmem_audit.documents.steplog import Inventory, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.runs import tensor_lookup
from trainmem_audit.sidefiles import OrderFile, TensorFile, find_frame, split_digests
from trainmem_audit.steplog import FRAME, LogReader

RUN = FakeRun()
FRAMES, ORDER = RUN.frames(), RUN.order()
SIZE = len(FRAMES) // RUN.steps


def check_tensors(data: bytes, run: FakeRun = RUN) -> list[bool]:
    """Read the frames in step with the log; return which steps have one."""
    log, file, kept = LogReader(), TensorFile(io.BytesIO(data)), []
    for line in run.lines():
        parsed = log.read(line)
        if isinstance(parsed, Step):
            kept.append(file.check(parsed, log.summary.components))
    file.finish()
    return kept


def check_order(data: bytes) -> None:
    """Read the indices in step with the log."""
    file = OrderFile(io.BytesIO(data))
    for line in RUN.parsed():
        if isinstance(line, Step):
            file.check(line)
    file.finish()


def where(check: object, data: bytes) -> str:
    """Return where `check` refuses the data."""
    assert callable(check)
    with pytest.raises(FormatError) as caught:
        check(data)
    return caught.value.where


def test_the_frames_of_every_step_hold() -> None:
    assert check_tensors(FRAMES) == [True] * 4


def test_steps_without_a_frame_are_no_fault() -> None:
    run = FakeRun()
    run.kept = {0, 3}
    assert check_tensors(run.frames(), run) == [True, False, False, True]
    assert check_tensors(b"") == [False] * 4


def test_every_flipped_byte_is_found_in_its_frame() -> None:
    for at in range(len(FRAMES)):
        flipped = bytearray(FRAMES)
        flipped[at] ^= 1
        assert where(check_tensors, bytes(flipped)) == f"tensors.b3: frame {at // SIZE}", at


def test_frames_cut_short_are_found_in_the_last_frame() -> None:
    for size in range(1, len(FRAMES)):
        if size % SIZE:
            assert where(check_tensors, FRAMES[:size]) == f"tensors.b3: frame {size // SIZE}", size


@pytest.mark.parametrize(
    ("order", "frame"), [((1, 0, 2, 3), 1), ((0, 0, 1, 2), 1), ((0, 1, 2, 3, 3), 4), ((0, 2, 1, 3), 2)]
)
def test_frames_moved_or_repeated_are_found(order: tuple[int, ...], frame: int) -> None:
    data = b"".join(FRAMES[SIZE * n : SIZE * (n + 1)] for n in order)
    assert where(check_tensors, data) == f"tensors.b3: frame {frame}"


def test_frames_of_steps_that_the_log_does_not_have_are_found() -> None:
    assert where(check_tensors, FRAMES + RUN.frame(3)[8:].rjust(SIZE, b"\x09")) == "tensors.b3: frame 4"


def test_a_frame_that_promises_much_is_not_believed() -> None:
    assert where(check_tensors, FRAME.pack(0, 2**32 - 1) + bytes(64)) == "tensors.b3: frame 0"


def test_a_component_that_changes_its_shape_changes_its_frames() -> None:
    log = LogReader()
    run = FakeRun(steps=1)
    for line in run.lines():
        parsed = log.read(line)
        if isinstance(parsed, Inventory) and parsed.components and "model.params" in parsed.components:
            log.summary.components["model.params"] = parsed.components["model.params"].model_copy(
                update={"tensors": (("fc.weight", "float32", (9,)), ("fc.bias", "float32", (4,)))}
            )
        if isinstance(parsed, Step):
            with pytest.raises(FormatError, match="do not give the component digest"):
                TensorFile(io.BytesIO(run.frames())).check(parsed, log.summary.components)


def test_the_indices_of_every_step_hold() -> None:
    check_order(ORDER)


def test_every_flipped_byte_is_found_in_its_step() -> None:
    for at in range(len(ORDER)):
        flipped = bytearray(ORDER)
        flipped[at] ^= 0x80
        step = at // (8 * BATCH)
        assert where(check_order, bytes(flipped)) == f"order/rank-0.i64: byte {8 * BATCH * step}"


@pytest.mark.parametrize("data", [b"", ORDER[:-1], ORDER[:-8], ORDER + b"\0", ORDER + bytes(8), ORDER[8:] + ORDER[:8]])
def test_indices_added_removed_or_moved_are_found(data: bytes) -> None:
    assert where(check_order, data).startswith("order/rank-0.i64")


def test_steps_without_indices_take_none() -> None:
    steps = [line for line in RUN.parsed() if isinstance(line, Step) and line.order is not None]
    file = OrderFile(io.BytesIO(b""))
    file.check(steps[0].model_copy(update={"order": None}))
    file.check(
        steps[0].model_copy(update={"order": steps[0].order and steps[0].order.model_copy(update={"index": None})})
    )
    file.finish()


def test_a_promise_of_many_indices_is_not_believed() -> None:
    step = next(line for line in RUN.parsed() if isinstance(line, Step))
    assert step.order is not None
    many = step.model_copy(update={"order": step.order.model_copy(update={"n": 2**53 - 1})})
    with pytest.raises(FormatError, match="too short"):
        OrderFile(io.BytesIO(ORDER)).check(many)


@pytest.mark.parametrize("step", range(4))
def test_the_frame_of_a_step_is_found(step: int) -> None:
    assert find_frame(io.BytesIO(FRAMES), step) == RUN.frame(step)[FRAME.size :]
    assert tensor_lookup(MemoryReader({"tensors.b3": FRAMES}))(step) == RUN.frame(step)[FRAME.size :]


def test_no_frame_is_found_where_there_is_none() -> None:
    run = FakeRun()
    run.kept = {0, 3}
    assert find_frame(io.BytesIO(run.frames()), 1) is None
    assert find_frame(io.BytesIO(run.frames()), 4) is None
    assert find_frame(io.BytesIO(FRAMES[:-1]), 3) is None
    assert find_frame(io.BytesIO(FRAME.pack(0, 2**32 - 1)), 1) is None
    assert tensor_lookup(MemoryReader({}))(0) is None


def test_digests_are_cut_by_component() -> None:
    data = b"a" * 32 + b"b" * 32 + b"c" * 32
    cut = split_digests(data, [("x", 1), ("none", 0), ("y", 2)])
    assert cut == {"x": [b"a" * 32], "none": [], "y": [b"b" * 32, b"c" * 32]}
