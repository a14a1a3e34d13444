"""Pins: each holds its factor still from run to run, breaks nothing that a script may do, and holds against the script.

Every case is a script in a process of its own, with pins and without the launcher.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainmem_audit.pinning.pins import can_fix_addresses, environment_of

START = 1_700_000_000 * 10**9
_BOOT = """
import runpy, sys
from pathlib import Path
from trainmem_audit.pinning.pins import apply, fix_addresses, watch
script, pins = sys.argv[1:]
if "addresses" in pins: fix_addresses()
places, root = Path(script).with_suffix(".places"), str(Path(script).parent)
watch(places, root) if pins == "watch" else apply(pins.split(","), {start}, places, root)
runpy.run_path(script, run_name="__main__")
"""


def run(tmp_path: Path, pins: str, script: str) -> str:
    """Run a script with pins and return what it printed."""
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-c", _BOOT.format(start=START), str(path), pins],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | environment_of(pins.split(",")),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def places(tmp_path: Path) -> list[str]:
    path = tmp_path / "script.places"
    return path.read_text().splitlines() if path.exists() else []


CLOCK = """
import datetime, time
from datetime import date, datetime as now_class
print(time.time(), time.time_ns(), time.perf_counter(), time.monotonic_ns(), time.process_time())
print(now_class.now(), now_class.now(datetime.UTC), now_class.today(), date.today(), time.strftime("%H %M"))
time.sleep(0.05)
print(time.time(), time.gmtime().tm_year, time.ctime(0)[-4:], time.clock_gettime(time.CLOCK_REALTIME))
"""


def test_the_clock_shows_the_same_in_every_run(tmp_path: Path) -> None:
    first = run(tmp_path, "clock", CLOCK)
    assert run(tmp_path, "clock", CLOCK) == first
    shown = [float(line.split()[0]) for line in (first.splitlines()[0], first.splitlines()[2])]
    assert shown[0] == pytest.approx(START / 1e9 + 0.001)
    assert 0.05 < shown[1] - shown[0] < 1  # sleeping takes time
    assert [line.split()[:2] for line in places(tmp_path)][:2] == [["clock", "4"], ["clock", "5"]]


def test_dates_stay_what_they_are(tmp_path: Path) -> None:
    run(
        tmp_path,
        "clock",
        """
import copy, datetime, pickle
from datetime import date, datetime as d
class Own(d):
    pass
moment = d.now()
assert type(moment) is d is datetime.datetime
assert isinstance(Own.now(), Own) and isinstance(Own.now(), d) and isinstance(moment, date)
assert pickle.loads(pickle.dumps(moment)) == moment == copy.deepcopy(moment)
assert pickle.loads(pickle.dumps(d)) is d
assert d(2020, 1, 2) - d(2020, 1, 1) == datetime.timedelta(days=1)
assert d.fromtimestamp(0, datetime.UTC).year == 1970 and moment.year == 2023
""",
    )


def test_waiting_takes_real_time(tmp_path: Path) -> None:
    run(
        tmp_path,
        "clock",
        """
import queue, subprocess, sys, threading
try:
    queue.Queue().get(timeout=0.05)
except queue.Empty:
    pass
assert not threading.Event().wait(0.05)
try:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
except subprocess.TimeoutExpired:
    pass
else:
    raise AssertionError
""",
    )


ENTROPY = """
import multiprocessing, os, random, secrets, signal, tempfile, uuid
print(os.urandom(4).hex(), secrets.token_hex(4), uuid.uuid4(), uuid.uuid1().version, random.Random().random())
random.seed(); print(random.random(), random.SystemRandom().random(), os.getpid())
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1)); os.kill(os.getpid(), signal.SIGUSR1); assert got
def child(number, queue):
    queue.put((number, os.getpid(), os.urandom(4).hex()))
queue = multiprocessing.get_context("fork").SimpleQueue()
workers = [multiprocessing.get_context("fork").Process(target=child, args=(n, queue)) for n in range(2)]
for worker in workers: worker.start()
print(sorted(queue.get() for _ in workers))
for worker in workers: worker.join(); assert worker.exitcode == 0
with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder) as file: assert file.name
"""


def test_entropy_is_the_same_in_every_run_and_another_in_every_process(tmp_path: Path) -> None:
    first = run(tmp_path, "entropy", ENTROPY)
    assert run(tmp_path, "entropy", ENTROPY) == first
    assert run(tmp_path, "clock", ENTROPY) != first
    drawn = {first.split()[0], *(item[2] for item in eval(first.splitlines()[2]))}
    assert len(drawn) == 3
    assert int(first.splitlines()[1].split()[2]) > 2**22  # no process has this id


RACE = """
import os, queue, threading, time
order, box = [], queue.Queue(2)
def produce(name):
    for number in range(5):
        time.sleep(os.urandom(1)[0] / 20000)
        box.put((name, number))
threads = [threading.Thread(target=produce, args=(name,)) for name in "abc"]
for thread in threads: thread.start()
for _ in range(15): order.append(box.get())
for thread in threads: thread.join()
print(order)
"""


def test_threads_run_in_the_same_order_every_time(tmp_path: Path) -> None:
    runs = {run(tmp_path, "turns", RACE) for _ in range(3)}
    assert len(runs) == 1
    assert len({run(tmp_path, "clock", RACE) for _ in range(4)}) > 1  # without: as they come
    assert len(eval(runs.pop())) == 15


def test_threads_that_wait_for_each_other_in_any_way_come_to_an_end(tmp_path: Path) -> None:
    run(
        tmp_path,
        "turns",
        """
import threading, time, queue
from concurrent.futures import ThreadPoolExecutor, wait
with ThreadPoolExecutor(3) as pool:
    assert sum(pool.map(lambda x: x * x, range(50))) == 40425
    wait([pool.submit(time.sleep, 0.001) for _ in range(5)])
barrier, event, lock, seen = threading.Barrier(3), threading.Event(), threading.RLock(), []
def meet(n):
    barrier.wait()
    with lock, lock:
        seen.append(n)
    event.wait()
threads = [threading.Thread(target=meet, args=(n,), daemon=n == 1) for n in range(3)]
for t in threads: t.start()
assert not event.wait(0.05)
threads[0].join(0.05); assert threads[0].is_alive()
event.set()
for t in threads: t.join()
assert sorted(seen) == [0, 1, 2]
class Own(threading.Thread):
    def run(self): self.value = 7
own = Own(); own.start(); own.join(); assert own.value == 7
semaphore, condition, ready = threading.Semaphore(0), threading.Condition(), []
timer = threading.Timer(0.01, semaphore.release); timer.start(); semaphore.acquire()
def tell():
    with condition: ready.append(1); condition.notify_all()
threading.Thread(target=tell).start()
with condition: assert condition.wait_for(lambda: ready, timeout=30)
def fail(): raise SystemExit
failing = threading.Thread(target=fail); failing.start(); failing.join()
simple = queue.SimpleQueue(); threading.Thread(target=simple.put, args=(3,)).start(); assert simple.get() == 3
threading.Thread(target=lambda: time.sleep(0.05)).start()  # outlives the main thread
forever = threading.Event(); threading.Thread(target=forever.wait, daemon=True).start()
""",
    )


@pytest.mark.skipif(not can_fix_addresses(), reason="the system does not let a process fix its addresses")
def test_objects_lie_where_they_lay(tmp_path: Path) -> None:
    script = "class A: pass\nprint([hash(A()) for _ in range(3)], id(A))"
    assert len({run(tmp_path, "addresses,hash", script) for _ in range(3)}) == 1
    assert len({run(tmp_path, "hash", script) for _ in range(3)}) > 1


def test_hashes_of_strings_are_fixed_by_the_environment(tmp_path: Path) -> None:
    assert len({run(tmp_path, "hash", "print(hash('a'))") for _ in range(2)}) == 1


def test_watching_changes_nothing_and_tells_who_asks(tmp_path: Path) -> None:
    script = """
import functools, os, threading, time, datetime
began = time.time()
assert abs(datetime.datetime.now().timestamp() - began) < 60 and began > 1.7e9 + 1000
assert os.getpid() < 2**23 and os.urandom(4) != os.urandom(4)
threading.Thread(target=functools.partial(lambda: 0)).start()
assert time.time() - began < 60 and time.localtime().tm_year > 2023
"""
    run(tmp_path, "watch", script)
    assert {tuple(line.split()[:2]) for line in places(tmp_path)} == {
        ("clock", "3"),
        ("clock", "4"),
        ("entropy", "5"),
        ("turns", "6"),
        ("clock", "7"),
    }
    run(tmp_path, "watch", "import random, tempfile; tempfile.NamedTemporaryFile().close()")
    assert len(places(tmp_path)) == 5  # names of temporary files matter to nobody


def test_settings_of_torch_hold_against_the_script(tmp_path: Path) -> None:
    run(
        tmp_path,
        "threads,deterministic,empty,cudnn,precision,memory,workers,generator,rng.numpy.entropy,entropy",
        """
import os
os.environ["OMP_NUM_THREADS"] = "2"
import numpy as np, torch
from torch.utils.data import DataLoader, RandomSampler
torch.set_num_threads(2); assert torch.get_num_threads() == 1
torch.use_deterministic_algorithms(False); assert torch.are_deterministic_algorithms_enabled()
torch.backends.cudnn.benchmark = True; assert not torch.backends.cudnn.benchmark
torch.backends.cudnn.deterministic = False; assert torch.backends.cudnn.deterministic
torch.set_float32_matmul_precision("medium"); assert torch.get_float32_matmul_precision() == "highest"
torch.backends.cuda.matmul.allow_tf32 = True; assert not torch.backends.cuda.matmul.allow_tf32
torch.backends.cudnn.allow_tf32 = True; assert not torch.backends.cudnn.allow_tf32
full = torch.full((999,), 7.0); del full
assert not torch.empty(999).any() and not np.empty(999).any() and not torch.zeros(3).new_empty(999).any()
assert torch.nn.Linear(3, 3).weight.any()
image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last); assert image.is_contiguous()
assert torch.nn.Conv2d(3, 3, 1).to("cpu", memory_format=torch.channels_last)(image).is_contiguous()
loader = DataLoader(list(range(20)), 4, True, num_workers=2, persistent_workers=True, prefetch_factor=3)
assert loader.num_workers == 0
first = [batch.tolist() for batch in loader]
assert first == [batch.tolist() for batch in DataLoader(list(range(20)), batch_size=4, shuffle=True)]
own = DataLoader(list(range(20)), generator=torch.Generator().manual_seed(5)); assert own.generator.initial_seed() == 5
seeds = [torch.seed(), torch.Generator().seed()]; assert torch.initial_seed() == seeds[0] != seeds[1]
np.random.default_rng(); np.random.default_rng(3)
""",
    )
    noted = {line.split()[0] for line in places(tmp_path)}
    assert noted == {"threads", "deterministic", "empty", "precision", "memory", "workers", "generator", "entropy"} | {
        "rng.numpy.entropy"
    }
