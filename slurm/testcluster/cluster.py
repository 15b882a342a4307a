#!/usr/bin/env python3
"""A real Slurm cluster on one Linux machine: three nodes as separate hosts, accounting, pretended GPUs,
preemption.

    python slurm/testcluster/cluster.py up       installs what is missing (Debian, Ubuntu), starts it, prints
    what to export python slurm/testcluster/cluster.py down     takes it down and leaves nothing behind

Each node is a network, PID, mount and host-name namespace of its own with its own slurmd; slurmctld,
slurmdbd, MariaDB and munge run beside them from private folders, so that /etc/slurm and a Slurm that the
machine may have are left alone. The partition `urgent` preempts jobs of `debug`. It needs root. Several
clusters can be up at once (`--name`). What a crash leaves behind, the next `up` or `down` of that name
removes; with `--owner PID` the cluster goes down by itself when that process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script
    sys.path.insert(0, str(Path(__file__).parents[2]))

from slurm.testcluster.layout import Layout

PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "slurmdbd", "mariadb-server-core", "mariadb-client-core",
)  # fmt: skip
PROGRAMS = (
    "slurmctld",
    "slurmd",
    "sbatch",
    "munged",
    "ip",
    "slurmdbd",
    "mariadbd",
    "mariadb",
    "mariadb-install-db",
    "unshare",
    "nsenter",
)
NODES = ("node1", "node2", "node3")
SLOTS = range(1, 50)  # of addresses and ports, one a cluster

SLURM_CONF = Path(__file__).with_name("slurm.conf.in").read_text(encoding="utf-8")

SLURMDBD_CONF = Path(__file__).with_name("slurmdbd.conf.in").read_text(encoding="utf-8")


def missing_programs() -> list[str]:
    """Programs of the cluster that this machine lacks."""
    return [
        name
        for name in PROGRAMS
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]


def why_not() -> str | None:
    """Why the cluster cannot run here, or None where it can (perhaps after `install`)."""
    if sys.platform != "linux":
        return "the test cluster needs Linux"
    if os.geteuid() != 0:
        return "the test cluster needs root (namespaces, a bridge)"
    if missing_programs() and shutil.which("apt-get") is None:
        return (
            f"the test cluster needs {', '.join(missing_programs())}, and there is no apt-get to install them"
        )
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    if probe.returncode:
        return "the test cluster needs namespaces, which this machine (a container without privileges?) does not allow"
    return None


def install() -> None:
    """Install what is missing, from the distribution's packages."""
    if not missing_programs():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    _run(["apt-get", "update", "-qq"], env=environment, timeout=300)
    _run(command, env=environment, timeout=600)


@dataclass(frozen=True)
class Cluster:
    """One cluster on this machine; all it owns is under `base`, and its processes name `base` in their
    command lines."""

    name: str = "default"
    layout: Layout = Layout()

    @property
    def base(self) -> Path:
        return (
            Path("/var/tmp/finetune-testcluster") / self.name
        )  # not in /tmp, which some systems clean while it runs

    @property
    def conf(self) -> Path:
        return self.base / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a shell needs to talk to it."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def slot(self) -> int:
        return int((self.base / "slot").read_text())

    @property
    def node_local(self) -> Path:
        """A folder that each node has for itself; every other folder of the machine is shared by the
        nodes."""
        return self.base / "node-local"

    # --- up and down
    # ---------------------------------------------------------------------------------------------------

    def up(self, owner: int | None = None, timeout: float = 60) -> None:
        """Start everything and wait until all nodes are idle.

        Args:
            owner: a process after whose end the cluster goes down by itself.

        Raises:
            RuntimeError: it cannot run here, or did not come up; then nothing is left of it.
        """
        if reason := why_not():
            raise RuntimeError(reason)
        install()
        self.down()
        try:
            self._configure()
            if owner is not None:
                _detached(
                    [sys.executable, __file__, "--name", self.name, "watch", str(owner)],
                    self.base / "log" / "watch.log",
                )
            self._start_network()
            self._start_munge()
            self.start_accounting()
            self.start_controller()
            for node in NODES:
                self.boot(node)
            self._wait_until_idle(timeout)
            for words in self.layout.gpu_limit_commands():
                self.slurm("sacctmgr", "-i", "-Q", *words)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process of the cluster and remove its network and folder. Safe to repeat, and after a
        crash."""
        for _ in range(50):
            pids = self._processes()
            if not pids:
                break
            for pid in pids:
                _kill(pid)
            time.sleep(0.1)
        if (self.base / "slot").is_file():
            self._remove_network()
        shutil.rmtree(self.base, ignore_errors=True)

    # --- what can befall it
    # ----------------------------------------------------------------------------------------------

    def cut_power(self, node: str) -> None:
        """The node's processes end at once, without a word to anybody."""
        pid_file = self.base / "run" / f"{node}.pid"
        _kill(int(pid_file.read_text()))
        pid_file.unlink()

    def boot(self, node: str) -> None:
        daemon = self.node_command(f"slurmd -D -f {self.conf} -N {node}")
        inner = (
            f"hostname {node} && mount --bind {self.base}/hosts /etc/hosts && mount -t tmpfs none {self.node_local} && "
            f"exec {daemon}"
        )
        namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [
            "nsenter",
            f"--net=/var/run/netns/{self._net_name(node)}",
            *namespaces,
            "bash",
            "-c",
            inner,
        ]
        started = _detached(command, self.base / "log" / f"{node}.log")
        (self.base / "run" / f"{node}.pid").write_text(str(started))

    def node_command(self, daemon: str) -> str:
        """Return the shell command that starts a node's daemon in the namespaces of that node."""
        return daemon

    def start_controller(self) -> None:
        _detached(["slurmctld", "-D", "-f", str(self.conf)], self.base / "log" / "slurmctld.out")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def start_accounting(self) -> None:
        self._start_database()
        _detached(["slurmdbd", "-D"], self.base / "log" / "slurmdbd.out", SLURM_CONF=str(self.conf))
        self._wait_for(lambda: _listens(f"10.77.{self.slot}.254", 20000 + self.slot), "slurmdbd", 20)
        if not self.slurm("sacctmgr", "-n", "show", "account", self.layout.accounts[0]).strip():
            for words in self.layout.accounting_commands():
                self.slurm("sacctmgr", "-i", "-Q", *words)

    def stop_accounting(self) -> None:
        self._end("slurmdbd")

    def slurm(self, *command: str, timeout: float = 20) -> str:
        """Run one of Slurm's commands; what it printed."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    # --- parts
    # -----------------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        for folder in (
            "run",
            "log",
            "state",
            "spool",
            "gpus",
            "database",
            "node-local",
            *(f"spool/{node}" for node in NODES),
        ):
            (self.base / folder).mkdir(parents=True)
        taken = {bridge.name for bridge in Path("/sys/class/net").glob("ftc*")}
        slot = next(number for number in SLOTS if f"ftc{number}" not in taken)
        _run(
            ["ip", "link", "add", f"ftc{slot}", "type", "bridge"]
        )  # fails where another cluster just took it
        (self.base / "slot").write_text(str(slot))
        net = f"10.77.{slot}"
        values = {
            "base": self.base,
            "net": net,
            "head": socket.gethostname().partition(".")[0],
            "cpus": self.layout.cpus,
            "gres": ",".join(
                f"gpu:{kind}:{count}" if kind else f"gpu:{count}" for kind, count in self.layout.gpus
            ),
            "memory": self.layout.memory_mb,
            "features": self.layout.features,
            "requeue": int(self.layout.requeue),
            "enforce_limits": self.layout.enforce_limits,
            "ctld_port": 21000 + slot,
            "dbd_port": 20000 + slot,
            "db_port": 22000 + slot,
            # ids are new at each start: one that came again would meet the files of an earlier job in the
            # same folder
            "first_job_id": 1000 + int(time.time()) % 50_000_000,
        }
        partitions = "\n".join(partition.line() for partition in self.layout.partitions)
        self.conf.write_text(f"{SLURM_CONF.format(**values)}{partitions}\n")
        dbd = self.base / "slurmdbd.conf"
        dbd.write_text(SLURMDBD_CONF.format(**values))
        dbd.chmod(0o600)
        self._make_gpus()
        hosts = [f"{net}.{number} {node}" for number, node in enumerate(NODES, start=1)]
        head = " ".join([str(values["head"]), *self.layout.login_hosts])
        (self.base / "hosts").write_text(
            "\n".join(["127.0.0.1 localhost", f"{net}.254 {head}", *hosts]) + "\n"
        )

    def _make_gpus(self) -> None:
        """Write gres.conf, and make the device files that it names: without one Slurm sets no
        CUDA_VISIBLE_DEVICES."""
        lines = []
        first = 0
        for kind, count in self.layout.gpus:
            files = f"File={self.base}/gpus/nvidia[{first}-{first + count - 1}]"
            lines.append(" ".join(["Name=gpu", *([f"Type={kind}"] if kind else []), files]))
            for index in range(first, first + count):
                os.mknod(self.base / "gpus" / f"nvidia{index}", 0o20600, os.makedev(1, 3))
            first += count
        (self.base / "gres.conf").write_text("\n".join(lines) + "\n")

    def _start_network(self) -> None:
        slot = self.slot
        bridge = f"ftc{slot}"
        inner = self.layout.interface
        _run(["ip", "addr", "add", f"10.77.{slot}.254/24", "dev", bridge])
        _run(["ip", "link", "set", bridge, "up"])
        for number, node in enumerate(NODES, start=1):
            space, outer = self._net_name(node), f"{bridge}v{number}"
            _run(["ip", "netns", "add", space])
            _run(["ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space])
            _run(["ip", "link", "set", outer, "master", bridge, "up"])
            _run(["ip", "-n", space, "addr", "add", f"10.77.{slot}.{number}/24", "dev", inner])
            for device in ("lo", inner):
                _run(["ip", "-n", space, "link", "set", device, "up"])

    def _remove_network(self) -> None:
        for node in NODES:
            _run(["ip", "netns", "del", self._net_name(node)], check=False)
        for link in sorted(Path("/sys/class/net").glob(f"ftc{self.slot}v*")):
            _run(["ip", "link", "del", link.name], check=False)
        _run(["ip", "link", "del", f"ftc{self.slot}"], check=False)

    def _net_name(self, node: str) -> str:
        return f"ftc{self.slot}-{node}"

    def _start_munge(self) -> None:
        key = self.base / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {
            "key-file": key,
            "socket": self.base / "munge.sock",
            "pid-file": self.base / "run" / "munged.pid",
        }
        files |= {"log-file": self.base / "log" / "munged.log", "seed-file": self.base / "munge.seed"}
        _detached(
            ["munged", "-F", *(f"--{name}={path}" for name, path in files.items())],
            self.base / "log" / "munged.out",
        )
        self._wait_for((self.base / "munge.sock").exists, "munged", 10)

    def _start_database(self) -> None:
        data, sock = self.base / "database", self.base / "database.sock"
        if any("mariadbd" in line for line in self._command_lines().values()):
            return
        if not (data / "mysql").is_dir():
            options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            _run(
                ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", *options],
                timeout=60,
            )
        _detached(
            [
                "mariadbd",
                "--no-defaults",
                "--user=root",
                f"--datadir={data}",
                f"--socket={sock}",
                "--bind-address=127.0.0.1",
                f"--port={22000 + self.slot}",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=32M",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-lock-wait-timeout=900",
            ],
            self.base / "log" / "mariadb.out",
        )
        create = [
            "mariadb",
            "--no-defaults",
            "-uroot",
            f"--socket={sock}",
            "-e",
            "create database if not exists slurm_acct",
        ]
        self._wait_for(
            lambda: subprocess.run(create, capture_output=True, check=False).returncode == 0, "MariaDB", 30
        )

    def _wait_until_idle(self, timeout: float) -> None:
        def idle() -> bool:
            try:
                partition = self.layout.partitions[0].name
                return self.slurm("sinfo", "-h", "-N", "-p", partition, "-o", "%t").split() == ["idle"] * len(
                    NODES
                )
            except (RuntimeError, subprocess.TimeoutExpired):
                return False

        self._wait_for(idle, "the nodes", timeout)

    def _wait_for(self, condition: object, what: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not condition():  # type: ignore[operator]
            if time.monotonic() > end:
                raise RuntimeError(f"{what} did not come up within {timeout:.0f} s: see {self._keep_logs()}")
            time.sleep(0.1)

    def _keep_logs(self) -> Path:
        kept = self.base.with_name(f"{self.name}.failed-logs")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.base / "log", kept)
        return kept

    def _end(self, program: str) -> None:
        """Ask a daemon to end, and wait until it has."""
        for attempt in range(100):
            pids = [
                pid for pid, line in self._command_lines().items() if Path(line.split()[0]).name == program
            ]
            if not pids:
                return
            for pid in pids:
                _kill(pid, signal.SIGTERM if attempt < 80 else signal.SIGKILL)
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        """Of the cluster, ourselves and our parents left out. Daemons name the folder in their command line
        or environment."""
        ours = {os.getpid(), os.getppid()}
        return [pid for pid in self._command_lines() if pid not in ours]

    def _command_lines(self) -> dict[int, str]:
        """Daemons of this cluster: those that have its folder in their arguments, or are slurmdbd with our
        SLURM_CONF."""
        found, mark = {}, f"{self.base}/"
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                program = Path(words[0].split(":")[0]).name
                ours = mark in " ".join(words)
                if program == "slurmdbd":
                    ours = f"SLURM_CONF={self.conf}" in (folder / "environ").read_bytes().decode(
                        errors="replace"
                    ).split("\0")
                watch = (
                    words[1:]
                    and Path(words[1]).name == Path(__file__).name
                    and "watch" in words
                    and self.name in words
                )
                daemons = (
                    "slurmctld",
                    "slurmdbd",
                    "slurmd",
                    "mariadbd",
                    "munged",
                    "unshare",
                    "nsenter",
                    "bash",
                    "slurmstepd",
                )
                if (ours and program in daemons) or watch:
                    found[int(folder.name)] = " ".join(words)
        return found


def _run(
    command: list[str], *, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 30
) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")


def _detached(command: list[str], log: Path, **environment: str) -> int:
    """Start a daemon in a session of its own, so that a signal to our terminal or test does not reach it; its
    process id."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    # what a test or a job has set is nothing for daemons, which hand their environment on to jobs
    inherited = {key: os.environ[key] for key in ("HOME", "LANG", "TZ") if key in os.environ}
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**inherited, "PATH": path, **environment},
        )
    return started.pid


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _watch(cluster: Cluster, owner: int) -> None:
    """Wait for the owner to end, then take the cluster down."""
    while Path(f"/proc/{owner}").is_dir() and cluster.conf.exists():
        time.sleep(0.5)
    cluster.down()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="It needs root, on Linux."
    )
    parser.add_argument(
        "--name", default="default", help="several clusters can be up at once, each by its name"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="install what is missing and start it")
    up.add_argument("--owner", type=int, metavar="PID", help="take it down when this process ends")
    verbs.add_parser("down", help="take it down")
    for verb, what in (("cut", "cut a node's power"), ("boot", "start a node again")):
        verbs.add_parser(verb, help=what).add_argument("node", choices=NODES)
    verbs.add_parser("watch").add_argument("owner", type=int)
    options = parser.parse_args()
    cluster = Cluster(options.name)
    try:
        if options.verb == "up":
            cluster.up(options.owner)
            print(f"export SLURM_CONF={cluster.conf}")
            print("# then, in that shell: finetune train … cluster=testcluster", file=sys.stderr)
        elif options.verb == "down":
            cluster.down()
        elif options.verb == "watch":
            _watch(cluster, options.owner)
        else:
            {"cut": cluster.cut_power, "boot": cluster.boot}[options.verb](options.node)
    except RuntimeError as fault:
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
