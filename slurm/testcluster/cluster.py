#!/usr/bin/env python3
"""A real Slurm cluster on one Linux machine: three nodes, accounting, simulated GPUs, preemption.

    python slurm/testcluster/cluster.py up      install missing packages (Debian, Ubuntu), start the
                                                cluster, and print the variables to export
    python slurm/testcluster/cluster.py down    stop the cluster and remove its files

Each node has its own network, PID, mount and host-name namespaces, and its own slurmd. slurmctld,
slurmdbd, MariaDB and munge run outside of these namespaces, with files in private folders.
/etc/slurm and an installed Slurm are not changed. The partition `urgent` preempts jobs of `debug`.

The cluster needs root. Several clusters can be up at once (`--name`). If a cluster has crashed, the
next `up` or `down` with its name removes its processes and files. With `--owner PID`, the cluster
is stopped when that process ends.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script
    sys.path.insert(0, str(Path(__file__).parents[2]))

from slurm.testcluster.layout import Layout
from slurm.testcluster.processes import is_listening, kill, run, start_daemon

PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "slurmdbd", "mariadb-server-core",
    "mariadb-client-core",
)  # fmt: skip
PROGRAMS = (
    "slurmctld", "slurmd", "sbatch", "munged", "ip", "slurmdbd", "mariadbd", "mariadb",
    "mariadb-install-db", "unshare", "nsenter",
)  # fmt: skip
DAEMONS = (
    "slurmctld", "slurmdbd", "slurmd", "mariadbd", "munged", "unshare", "nsenter", "bash", "slurmstepd",
)  # fmt: skip
NODES = ("node1", "node2", "node3")
SLOTS = range(1, 50)  # possible numbers of a cluster; its addresses and ports follow from its number

SLURM_CONF = Path(__file__).with_name("slurm.conf.in").read_text(encoding="utf-8")
SLURMDBD_CONF = Path(__file__).with_name("slurmdbd.conf.in").read_text(encoding="utf-8")


def missing_programs() -> list[str]:
    """Return the programs that the cluster needs and this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def unavailable_reason() -> str | None:
    """Return why the cluster cannot run on this machine; None if it can, perhaps after install()."""
    if sys.platform != "linux":
        return "the test cluster needs Linux"
    if os.geteuid() != 0:
        return "the test cluster needs root (namespaces, a bridge)"
    missing = ", ".join(missing_programs())
    if missing and shutil.which("apt-get") is None:
        return f"the test cluster needs {missing}, which are not installed; install them (apt-get is missing)"
    probe = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "the test cluster needs namespaces, which this machine does not allow (is it a container?)"
    return None


def install() -> None:
    """Install missing programs from the distribution's packages."""
    if not missing_programs():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    run(["apt-get", "update", "-qq"], env=environment, timeout=300)
    run(command, env=environment, timeout=600)


@dataclass(frozen=True)
class Cluster:
    """A cluster on this machine. Its files are in the folder `base`."""

    name: str = "default"
    layout: Layout = Layout()

    @property
    def base(self) -> Path:
        # Some systems remove old files from /tmp while the cluster runs.
        return Path("/var/tmp/finetune-testcluster") / self.name

    @property
    def conf(self) -> Path:
        return self.base / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a shell needs to use the cluster."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def slot(self) -> int:
        return int((self.base / "slot").read_text())

    @property
    def node_local(self) -> Path:
        """A folder that each node has for itself. The nodes share all other folders."""
        return self.base / "node-local"

    # --- up and down ----------------------------------------------------------------------------

    def up(self, owner: int | None = None, timeout: float = 60) -> None:
        """Start the cluster and wait until all nodes are idle.

        Args:
            owner: id of a process; when it ends, the cluster is stopped. None: it runs on.
            timeout: seconds to wait for the nodes.

        Raises:
            RuntimeError: the cluster cannot run on this machine, or did not start. Its processes
                and files were removed; the logs are kept.
        """
        reason = unavailable_reason()
        if reason:
            raise RuntimeError(reason)
        install()
        self.down()
        try:
            self._configure()
            if owner is not None:
                watch = [sys.executable, __file__, "--name", self.name, "watch", str(owner)]
                start_daemon(watch, self.base / "log" / "watch.log")
            self._start_network()
            self._start_munge()
            self.start_accounting()
            self.start_controller()
            for node in NODES:
                self.boot(node)
            self._wait_until_idle(timeout)
            for arguments in self.layout.gpu_limit_commands():
                self.slurm("sacctmgr", "-i", "-Q", *arguments)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Kill the cluster's processes, and remove its network and files."""
        for _ in range(50):
            pids = self._processes()
            if not pids:
                break
            for pid in pids:
                kill(pid)
            time.sleep(0.1)
        if (self.base / "slot").is_file():
            self._remove_network()
        shutil.rmtree(self.base, ignore_errors=True)

    # --- events ---------------------------------------------------------------------------------

    def cut_power(self, node: str) -> None:
        """Kill all processes of a node at once, with SIGKILL."""
        pid_file = self.base / "run" / f"{node}.pid"
        kill(int(pid_file.read_text()))
        pid_file.unlink()

    def boot(self, node: str) -> None:
        daemon = self.node_command(f"slurmd -D -f {self.conf} -N {node}")
        inner = (
            f"hostname {node} && mount --bind {self.base}/hosts /etc/hosts && "
            f"mount -t tmpfs none {self.node_local} && exec {daemon}"
        )
        network = ["nsenter", f"--net=/var/run/netns/{self._net_name(node)}"]
        namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*network, *namespaces, "bash", "-c", inner]
        started = start_daemon(command, self.base / "log" / f"{node}.log")
        (self.base / "run" / f"{node}.pid").write_text(str(started))

    def node_command(self, daemon: str) -> str:
        """Return the shell command that a node runs to start its daemon. SiteCluster extends it."""
        return daemon

    def start_controller(self) -> None:
        start_daemon(["slurmctld", "-D", "-f", str(self.conf)], self.base / "log" / "slurmctld.out")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def start_accounting(self) -> None:
        self._start_database()
        start_daemon(["slurmdbd", "-D"], self.base / "log" / "slurmdbd.out", SLURM_CONF=str(self.conf))
        address = (f"10.77.{self.slot}.254", 20000 + self.slot)
        self._wait_for(lambda: is_listening(*address), "slurmdbd", 20)
        if not self.slurm("sacctmgr", "-n", "show", "account", self.layout.accounts[0]).strip():
            for arguments in self.layout.accounting_commands():
                self.slurm("sacctmgr", "-i", "-Q", *arguments)

    def stop_accounting(self) -> None:
        self._end("slurmdbd")

    def slurm(self, *command: str, timeout: float = 20) -> str:
        """Run a Slurm command on this cluster and return its output.

        Raises:
            RuntimeError: the command failed.
            subprocess.TimeoutExpired: it did not end within `timeout` seconds.
        """
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

    # --- parts ----------------------------------------------------------------------------------

    def _configure(self) -> None:
        folders = ["run", "log", "state", "spool", "gpus", "database", "node-local"]
        for folder in (*folders, *(f"spool/{node}" for node in NODES)):
            (self.base / folder).mkdir(parents=True)
        taken = {bridge.name for bridge in Path("/sys/class/net").glob("ftc*")}
        slot = next(number for number in SLOTS if f"ftc{number}" not in taken)
        # This fails if another cluster has just taken the same slot.
        run(["ip", "link", "add", f"ftc{slot}", "type", "bridge"])
        (self.base / "slot").write_text(str(slot))
        net = f"10.77.{slot}"
        gpus = [f"gpu:{kind}:{count}" if kind else f"gpu:{count}" for kind, count in self.layout.gpus]
        values = {
            "base": self.base,
            "net": net,
            "head": socket.gethostname().partition(".")[0],
            "cpus": self.layout.cpus,
            "gres": ",".join(gpus),
            "memory": self.layout.memory_mb,
            "features": self.layout.features,
            "requeue": int(self.layout.requeue),
            "enforce_limits": self.layout.enforce_limits,
            "ctld_port": 21000 + slot,
            "dbd_port": 20000 + slot,
            "db_port": 22000 + slot,
            # Job ids differ at each start of the cluster. So a job does not find files of an
            # earlier job with the same id.
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
        lines = ["127.0.0.1 localhost", f"{net}.254 {head}", *hosts]
        (self.base / "hosts").write_text("\n".join(lines) + "\n")

    def _make_gpus(self) -> None:
        """Write gres.conf and the device files it names. Slurm sets CUDA_VISIBLE_DEVICES from both."""
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
        run(["ip", "addr", "add", f"10.77.{slot}.254/24", "dev", bridge])
        run(["ip", "link", "set", bridge, "up"])
        for number, node in enumerate(NODES, start=1):
            space = self._net_name(node)
            outer = f"{bridge}v{number}"
            run(["ip", "netns", "add", space])
            run(["ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space])
            run(["ip", "link", "set", outer, "master", bridge, "up"])
            run(["ip", "-n", space, "addr", "add", f"10.77.{slot}.{number}/24", "dev", inner])
            for device in ("lo", inner):
                run(["ip", "-n", space, "link", "set", device, "up"])

    def _remove_network(self) -> None:
        for node in NODES:
            run(["ip", "netns", "del", self._net_name(node)], check=False)
        for link in sorted(Path("/sys/class/net").glob(f"ftc{self.slot}v*")):
            run(["ip", "link", "del", link.name], check=False)
        run(["ip", "link", "del", f"ftc{self.slot}"], check=False)

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
        options = [f"--{name}={path}" for name, path in files.items()]
        start_daemon(["munged", "-F", *options], self.base / "log" / "munged.out")
        self._wait_for((self.base / "munge.sock").exists, "munged", 10)

    def _start_database(self) -> None:
        data = self.base / "database"
        sock = self.base / "database.sock"
        if any("mariadbd" in line for line in self._command_lines().values()):
            return
        common = ["--no-defaults", "--user=root", f"--datadir={data}"]
        if not (data / "mysql").is_dir():
            options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            run(["mariadb-install-db", *common, *options], timeout=60)
        server = [
            "mariadbd",
            *common,
            f"--socket={sock}",
            "--bind-address=127.0.0.1",
            f"--port={22000 + self.slot}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        ]
        start_daemon(server, self.base / "log" / "mariadb.out")
        statement = "create database if not exists slurm_acct"
        create = ["mariadb", "--no-defaults", "-uroot", f"--socket={sock}", "-e", statement]

        def has_created() -> bool:
            return subprocess.run(create, capture_output=True, check=False).returncode == 0

        self._wait_for(has_created, "MariaDB", 30)

    def _wait_until_idle(self, timeout: float) -> None:
        partition = self.layout.partitions[0].name

        def is_idle() -> bool:
            try:
                states = self.slurm("sinfo", "-h", "-N", "-p", partition, "-o", "%t").split()
            except (RuntimeError, subprocess.TimeoutExpired):
                return False
            return states == ["idle"] * len(NODES)

        self._wait_for(is_idle, "the nodes", timeout)

    def _wait_for(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"{what} did not start within {timeout:.0f} s; see {self._keep_logs()}")
            time.sleep(0.1)

    def _keep_logs(self) -> Path:
        kept = self.base.with_name(f"{self.name}.failed-logs")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.base / "log", kept)
        return kept

    def _end(self, program: str) -> None:
        """Send SIGTERM to a daemon and wait for its end; send SIGKILL after 8 s."""
        for attempt in range(100):
            lines = self._command_lines()
            pids = [pid for pid, line in lines.items() if Path(line.split()[0]).name == program]
            if not pids:
                return
            for pid in pids:
                kill(pid, signal.SIGTERM if attempt < 80 else signal.SIGKILL)
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        """Return the ids of the cluster's processes. This process and its parent are left out."""
        ours = {os.getpid(), os.getppid()}
        return [pid for pid in self._command_lines() if pid not in ours]

    def _command_lines(self) -> dict[int, str]:
        """Return the command lines of the cluster's processes by process id.

        Daemons are found by the cluster's folder in their arguments, or, for slurmdbd, in
        SLURM_CONF. The process that watches the owner is found by the cluster's name.
        """
        found = {}
        mark = f"{self.base}/"
        setting = f"SLURM_CONF={self.conf}"
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                program = Path(arguments[0].split(":")[0]).name
                is_ours = mark in " ".join(arguments)
                if program == "slurmdbd":
                    environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                    is_ours = setting in environment
                is_script = len(arguments) > 1 and Path(arguments[1]).name == Path(__file__).name
                is_watch = is_script and "watch" in arguments and self.name in arguments
                if (is_ours and program in DAEMONS) or is_watch:
                    found[int(folder.name)] = " ".join(arguments)
        return found


def _watch(cluster: Cluster, owner: int) -> None:
    """Wait for the owner to end, then stop the cluster."""
    while Path(f"/proc/{owner}").is_dir() and cluster.conf.exists():
        time.sleep(0.5)
    cluster.down()


def main() -> None:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, epilog="It needs root, on Linux.")
    parser.add_argument("--name", default="default", help="name of the cluster; several can be up at once")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="install missing packages and start the cluster")
    up.add_argument("--owner", type=int, metavar="PID", help="stop the cluster when this process ends")
    verbs.add_parser("down", help="stop the cluster and remove its files")
    for verb, description in (("cut", "cut a node's power"), ("boot", "start a node again")):
        verbs.add_parser(verb, help=description).add_argument("node", choices=NODES)
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
