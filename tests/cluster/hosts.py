"""Hosts on this machine: each has namespaces of its own (network, processes, mounts) and a control group that can
lose its power. Their networks meet on one bridge.

    bridge 10.77.0.1       this machine: the store, Airflow, the tests
    10.77.0.2              a host's only way to anything is its `eth0` on the bridge

A host runs its one service as an init system does: started again whenever it ends. Needs root on Linux with cgroup v2;
`forbidden()` says what is missing.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BRIDGE = "atelier0"
BRIDGE_ADDRESS = "10.77.0.1"
RESTART_SECONDS = 2  # between the end of a service and its next start
END_SECONDS = 20.0


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def group_root() -> Path | None:
    """Where the control groups of version 2 are mounted."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)


def forbidden() -> str:
    """Why no host can be made here; "" where one can."""
    if os.geteuid():
        return "needs root, for network namespaces"
    if missing := [name for name in ("ip", "nsenter", "unshare", "initdb") if not program(name)]:
        return f"needs {', '.join(missing)}: apt-get install iproute2 util-linux postgresql"
    root = group_root()
    if root is None:
        return "needs control groups of version 2"
    probe = root / f"atelier-probe-{os.getpid()}"
    try:
        probe.mkdir()
        kills = (probe / "cgroup.kill").exists()
        probe.rmdir()
        ip("netns", "add", probe.name)
        ip("netns", "del", probe.name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the kernel forbids control groups or network namespaces: {error}"
    return "" if kills else "needs cgroup.kill (Linux 5.14)"


def program(name: str) -> str | None:
    """A program's path; PostgreSQL's server lies outside of PATH on Debian."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, reversed(versions))]))


def make_bridge() -> None:
    """The network between the hosts; what an earlier, killed run left of it goes first."""
    remove_bridge()
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{BRIDGE_ADDRESS}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")


def remove_bridge() -> None:
    """Take the network down, where it is there."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        ip("link", "del", BRIDGE)


@dataclass
class Host:
    """A host by name, with the last number of its address and the folder that it has to itself."""

    name: str
    number: int
    folder: Path
    service: Sequence[str]
    environment: Mapping[str, str]
    _running: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"10.77.0.{self.number}"

    @property
    def _namespace(self) -> str:
        return f"atelier-{self.name}"

    @property
    def _line(self) -> str:
        return f"atelier-v{self.number}"  # the bridge's end of its line

    @property
    def group(self) -> Path:
        """Its control group: all its processes, whatever their session."""
        root = group_root()
        assert root is not None
        return root / self._namespace

    @property
    def _leaving(self) -> Path:
        """A file that keeps the init loop from starting the service again."""
        return self.folder / "leaving"

    @property
    def log(self) -> Path:
        """What its service says."""
        return self.folder / "service.log"

    @property
    def on(self) -> bool:
        """Whether somebody looks after its service."""
        return self._running is not None

    def make(self) -> None:
        """Lay its line and its control group; nothing runs yet."""
        self.remove()
        (self.folder / "ray").mkdir(parents=True, exist_ok=True)
        ip("netns", "add", self._namespace)
        ip("link", "add", self._line, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        ip("link", "set", self._line, "master", BRIDGE, "up")
        inside = ("-n", self._namespace)
        ip(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "link", "set", "lo", "up")
        self.group.mkdir()

    def boot(self) -> None:
        """Start the service, and again whenever it ends."""
        Path("/tmp/ray").mkdir(exist_ok=True)  # noqa: S108 - Ray's own folder, which each host has to itself
        script = (
            'echo $$ > "$1/cgroup.procs"; mount --bind "$2" /tmp/ray; leaving="$3"; shift 3\n'
            f'while [ ! -e "$leaving" ]; do "$@"; echo "the service ended with $?"; sleep {RESTART_SECONDS}; done'
        )
        enter = [
            "nsenter",
            f"--net=/run/netns/{self._namespace}",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
        ]
        self._leaving.unlink(missing_ok=True)
        own = [str(self.group), str(self.folder / "ray"), str(self._leaving)]
        command = [*enter, "sh", "-c", script, self.name, *own, *self.service]
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def cut(self) -> None:
        """Pull its network cable."""
        ip("link", "set", self._line, "down")

    def mend(self) -> None:
        """Plug its network cable in."""
        ip("link", "set", self._line, "up")

    def power_off(self) -> None:
        """End all its processes at once, as a power cut does."""
        if self.group.exists():
            (self.group / "cgroup.kill").write_text("1")
            deadline = time.monotonic() + END_SECONDS
            while (self.group / "cgroup.procs").read_text():
                assert time.monotonic() < deadline, f"{self.name} does not end"
                time.sleep(0.05)
        if self._running:
            self._running.wait()
            self._running = None

    def reclaim(self, leave: Sequence[str], grace_seconds: float) -> None:
        """End it as a cloud takes a spot machine back: its service's stop command, and no power after the grace."""
        ends = time.monotonic() + grace_seconds
        self._leaving.touch()
        inside = next(process.pid for process in self.processes() if process.name() == "raylet")
        enter = ["nsenter", f"--target={inside}", "--net", "--mount", "--pid"]
        with self.log.open("ab") as log:
            stopping = subprocess.Popen(
                [*enter, *leave], env={**os.environ, **self.environment}, stdout=log, stderr=subprocess.STDOUT
            )
        time.sleep(max(0.0, ends - time.monotonic()))
        self.power_off()
        stopping.kill()
        stopping.wait()

    def remove(self) -> None:
        """Take the host away."""
        self.power_off()
        deadline = time.monotonic() + END_SECONDS
        while self.group.exists():
            try:
                self.group.rmdir()
            except OSError:  # busy until what was killed has been reaped
                assert time.monotonic() < deadline, f"{self.group} stays busy"
                time.sleep(0.05)
        if Path(f"/sys/class/net/{self._line}").exists():
            ip("link", "del", self._line)  # first: the kernel takes a namespace down some time after its name is gone
        if Path(f"/run/netns/{self._namespace}").exists():
            ip("netns", "del", self._namespace)

    def processes(self) -> list[psutil.Process]:
        """What runs on it now."""
        found = []
        for pid in (self.group / "cgroup.procs").read_text().split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found

    def signal(self, title: str, number: signal.Signals) -> int:
        """Send a signal to the processes whose command line holds `title`; gives how many."""
        victims = [process for process in self.processes() if title in title_of(process)]
        for process in victims:
            process.send_signal(number)
        return len(victims)


def title_of(process: psutil.Process) -> str:
    """Its command line; "" where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
