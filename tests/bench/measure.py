"""How the benchmarks take a figure: samples per CPU-second, best of some rounds, and memory of a process tree.

A *pass* is a function that gives a generator of sample counts, such as one epoch in batches. A round runs passes anew
until `min_seconds` have gone by; it may end in the middle of a slow one. What is compared takes its rounds in turn, so
that a machine that slows down slows down both. CPU time is that of all threads of this process and of the children
that it has waited for. The standard library only: the peers run this file in an environment of their own.
"""

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Pass = Callable[[], Generator[int]]
SAMPLE_EVERY_SECONDS = 0.02
MIB = 1 << 20


@dataclass(frozen=True)
class Rule:
    """How long and how often to measure."""

    rounds: int = 3
    min_seconds: float = 2.0


THOROUGH = Rule()
QUICK = Rule(rounds=1, min_seconds=0.05)


@dataclass(frozen=True)
class Rate:
    """What one round did."""

    samples: int
    cpu_seconds: float
    wall_seconds: float

    @property
    def per_cpu_second(self) -> float:
        """Samples per second of CPU time, whatever number of threads took it."""
        return self.samples / max(self.cpu_seconds, 1e-9)

    @property
    def per_second(self) -> float:
        """Samples per second on the clock."""
        return self.samples / max(self.wall_seconds, 1e-9)


@dataclass(frozen=True)
class Timed:
    """A pass, and what must be made ready before each, which is not counted."""

    run: Pass
    prepare: Callable[[], None] = lambda: None
    warm: bool = True  # run for a moment before the first round: imports, thread pools, the page cache
    uncut: bool = False  # each pass runs to its end: it does work ahead, which a cut would count without its samples


def cpu_seconds() -> float:
    """CPU time of this process's threads and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def rate_of(what: Timed, min_seconds: float) -> Rate:
    """One round."""
    samples, cpu, wall = 0, 0.0, 0.0
    while wall < min_seconds:
        what.prepare()
        begin_cpu, begin = cpu_seconds(), time.perf_counter()
        passed = what.run()
        for count in passed:
            samples += count
            if not what.uncut and wall + time.perf_counter() - begin >= min_seconds:
                break
        passed.close()  # one that is cut short ends its threads within its own time
        cpu += cpu_seconds() - begin_cpu
        wall += time.perf_counter() - begin
    return Rate(samples, cpu, wall)


def best_rates(passes: Mapping[str, Timed], rule: Rule) -> dict[str, Rate]:
    """The best round of each by CPU time; the rounds are taken in turn."""
    for what in passes.values():
        if what.warm:
            rate_of(what, min(rule.min_seconds, 0.3))
    best: dict[str, Rate] = {}
    for _ in range(rule.rounds):
        for name, what in passes.items():
            found = rate_of(what, rule.min_seconds)
            if name not in best or found.per_cpu_second > best[name].per_cpu_second:
                best[name] = found
    return best


def whole(samples: int, function: Callable[[], object]) -> Rate:
    """A single run of something that takes long by itself."""
    begin_cpu, begin = cpu_seconds(), time.perf_counter()
    function()
    return Rate(samples, cpu_seconds() - begin_cpu, time.perf_counter() - begin)


@dataclass
class Memory:
    """The most that this process held, in bytes.

    `own` is what only ending the process gives back (anonymous and shared memory); `mapped` are resident pages of
    files, which the kernel drops when it needs them.
    """

    own: int = 0
    mapped: int = 0

    def sample(self) -> None:
        """Look once."""
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        kib = {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "RssFile")}
        self.own = max(self.own, (kib["RssAnon"] + kib["RssShmem"]) << 10)
        self.mapped = max(self.mapped, kib["RssFile"] << 10)


def memory_now() -> Memory:
    """What this process holds now."""
    memory = Memory()
    memory.sample()
    return memory


@contextlib.contextmanager
def peak_memory() -> Iterator[Memory]:
    """Watch this process from a thread; the figures are final after the block."""
    memory, ended = Memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_EVERY_SECONDS):
            memory.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()
        memory.sample()
