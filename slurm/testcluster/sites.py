"""The test cluster as an imitation of a site: queues, accounts, folders, modules, programs.

    python -m slurm.testcluster.sites up lumi               start the test cluster as LUMI
    python -m slurm.testcluster.sites login lumi [COMMAND]  open a shell on its login node, or run
                                                            a command there
    python -m slurm.testcluster.sites down lumi             stop it and remove its files

The login node and the compute nodes have their own root folder. It contains this machine's folders,
the site's file systems (/scratch, /cluster, …), and /site with stand-ins for the site's programs.
The stand-ins come first on PATH:

    python3       reports the version of the site's old Python, and refuses newer syntax
    module        finds a module only if its prerequisites are loaded; logs each call in
                  /site/modules.log
    apptainer     runs a command in a third root folder. It contains a Python in /opt/env and those
                  of the site's folders that are bound, but no Slurm commands.
    finetune      runs without torch, as on a login node
    sinfo         fails at a site that does not allow users to run it

GPUs, another CPU architecture, and the site's speed are not imitated.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.testcluster import wrapped
from slurm.testcluster.cluster import Cluster
from slurm.testcluster.layout import Layout, Limits, Partition
from slurm.testcluster.processes import start_daemon
from slurm.testcluster.site_profiles import LUMI, SITES, Site

STAND_INS = Path(__file__).parent / "stand_ins"
NOT_ON_LOGIN = ("torch", "deepspeed", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


def union(sites: list[Site]) -> Layout:
    """Return a layout for a cluster that accepts the jobs of all these sites.

    It has all partitions, qualities of service, accounts, GPU types and features of the sites. Its
    nodes are as large as the largest. It has no limits, since sites have different limits for
    partitions of the same name. `limit` sets the limits of one site.
    """
    layouts = [site.layout for site in sites]
    partitions = {
        partition.name: Partition(partition.name, "30-00:00:00")
        for each in layouts
        for partition in each.partitions
    }
    qualities = {name: Limits() for each in layouts for name, _ in each.qualities}
    types = {kind: count for each in layouts for kind, count in each.gpus if kind}
    first, *others = partitions.values()
    return Layout(
        partitions=(replace(first, is_default=True), *others),
        qualities=tuple(qualities.items()),
        accounts=tuple(dict.fromkeys(account for each in layouts for account in each.accounts)),
        gpus=tuple(types.items()),
        cpus=max(each.cpus for each in layouts),
        memory_mb=max(each.memory_mb for each in layouts),
        features=",".join(dict.fromkeys(each.features for each in layouts if each.features != "none")),
        enforce_limits="ALL",
    )


def limit(cluster: Cluster, site: Site) -> None:
    """Give the partitions of a running cluster the limits that they have at the site."""
    for partition in site.layout.partitions:
        settings = [f"MaxTime={partition.max_time}", f"MaxNodes={partition.max_nodes or 'UNLIMITED'}"]
        settings.append(f"OverSubscribe={'EXCLUSIVE' if partition.whole_nodes else 'NO'}")
        cluster.slurm("scontrol", "update", f"PartitionName={partition.name}", *settings)


@dataclass(frozen=True)
class SiteCluster(Cluster):
    """A test cluster that imitates a site, with a login node."""

    site: Site = LUMI

    @classmethod
    def of(cls, site: Site, name: str) -> SiteCluster:
        return cls(name=name, layout=site.layout, site=site)

    @property
    def disk(self) -> Path:
        """The folder on this machine that contains the site's file systems and /site."""
        return self.base / "disk"

    def path(self, path: str) -> Path:
        """Return the path on this machine for a path on the site, such as /site/bin."""
        return self.disk / path.lstrip("/")

    def node_command(self, daemon: str) -> str:
        return f"bash {self.base}/enter-root node {daemon}"

    def _configure(self) -> None:
        super()._configure()
        _write_disk(self)
        _write_root_script(self)

    def _start_network(self) -> None:
        super()._start_network()
        self._start_login_node()

    def _start_login_node(self) -> None:
        """Start a process that keeps the login node's namespaces alive, and wait until they exist."""
        inner = f"hostname {self.site.login_host} && exec bash {self.base}/enter-root login bash /site/wait"
        command = ["unshare", "--uts", "--mount", "--fork", "--kill-child", "bash", "-c", inner]
        start_daemon(command, self.base / "log" / "login.log")
        self._wait_for(self.path("/site/login.pid").exists, "the login node", 10)

    def login(self, *command: str, folder: str | None = None) -> list[str]:
        """Return the command line that runs `command` on the login node.

        Args:
            command: a command with its arguments; if empty, an interactive shell.
            folder: working folder; None: the home folder.
        """
        site = self.site
        variables = {
            "HOME": site.home,
            "USER": "root",
            "LOGNAME": "root",
            "TERM": os.environ.get("TERM", "dumb"),
            "LANG": "C.UTF-8",
            "PATH": "/site/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "BASH_ENV": "/site/init.sh",
            "LOADEDMODULES": site.loaded,
            "MODULEPATH": "/site/modules",
            **self.environment,
            **site.environment,
        }
        settings = [f"{key}={value}" for key, value in variables.items()]
        pid = self.path("/site/login.pid").read_text().strip()
        enter = ["nsenter", f"--target={pid}", "--mount", "--uts", "env", "-i", *settings, "bash"]
        if not command:
            return [*enter, "--rcfile", "/site/init.sh", "-i"]
        return [*enter, "-c", f'cd {shlex.quote(folder or site.home)} && exec "$@"', "bash", *command]


def _write_disk(cluster: SiteCluster) -> None:
    """Write the site's folders, its modules, and the stand-ins in /site."""
    site = cluster.site
    disk = cluster.path
    for folder in (*site.folders, site.home, "/site/bin", "/site/newer-python/bin"):
        disk(folder).mkdir(parents=True, exist_ok=True)
    for path, lines in site.modules.items():
        _write(disk(path), lines)
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    newer = f'#!/bin/bash\nexec {python} "$@"\n'
    old = f'#!/bin/bash\nexec {python} -I /site/old_python.py {site.python} "$@"\n'
    _write(disk("/site/bin/python3"), old)
    _write(cluster.base / "profile.d" / "modules.sh", ". /site/init.sh\n")
    for name in ("python3", f"python3.{sys.version_info.minor}"):
        _write(disk(f"/site/newer-python/bin/{name}"), newer)
    for name, script in site.programs.items():
        _write(disk(f"/site/bin/{name}"), f"#!/bin/bash\n{script}\n")
    for name in ("old_python.py", "init.sh", "wait", "apptainer"):
        shutil.copy(STAND_INS / name, disk("/site") / name)
    _write(disk("/site/bin/apptainer"), f'#!/bin/bash\nexec bash /site/apptainer {cluster.base}/image "$@"\n')
    _write(disk("/site/bin/singularity"), disk("/site/bin/apptainer").read_text())
    if site.image:
        _write(disk(site.image), "#!/usr/bin/env run-singularity\n")
    _write_image(cluster.base / "image")
    _write_login_environment(cluster)


def _write_image(image: Path) -> None:
    """Write the files that containers have in /opt/env: an environment of this Python."""
    version = f"python3.{sys.version_info.minor}"
    base = Path("/usr") if sys.base_prefix == "/usr" else Path("/opt/python")
    for folder in ("bin", "lib", "include"):
        (image / "env" / folder).mkdir(parents=True)
    (image / "env" / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    for name in ("python", "python3", version):
        (image / "env" / "bin" / name).symlink_to(base / "bin" / version)
    (image / "base-prefix").write_text(f"{sys.base_prefix}\n")


def _write_login_environment(cluster: SiteCluster) -> None:
    """Write the program `finetune` of the login node.

    If jobs have another Python, the program must run without torch and the like. So it runs this
    Python, but hides these packages. Other tests cover the installation on a login node.
    """
    site = cluster.site
    folder = cluster.path("/site")
    python = sys.executable
    if site.wrapped:
        wrapped.wrap(cluster.path(site.wrapped))
        packages = cluster.path(site.wrapped) / "img.sqfs" / "lib"
        packages.unlink()
        packages.symlink_to(cluster.base / "image" / "env" / "lib")
        python = f"{site.wrapped}/bin/python"
    hidden = () if site.shares_python else NOT_ON_LOGIN
    source = Path(__file__).parents[2]
    command = f"""\
        import sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {hidden!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        if __name__ == "__main__":
            sys.meta_path.insert(0, Hidden())
            from finetune.cli.main import main
            sys.exit(main())
        """
    _write(folder / "login" / "start.py", textwrap.dedent(command))
    script = f"""\
        #!/bin/bash
        # The nodes have no GPUs, so trainings are kept on the CPU.
        case $1 in train)
            set -- "$@" ++cluster.env.CUDA_VISIBLE_DEVICES= ++cluster.env.OMP_NUM_THREADS=1;;
        esac
        PYTHONPATH={source}/src:{source} exec {python} /site/login/start.py "$@"
        """
    _write(folder / "bin" / "finetune", textwrap.dedent(script))


def _write_root_script(cluster: SiteCluster) -> None:
    """Write the script that starts a process with the site's root folder.

    The root folder contains this machine's folders and the site's. On compute nodes, the folder of
    this Python's environment is empty, unless the site shares it. The login node and containers
    have it.
    """
    is_hidden = sys.prefix != sys.base_prefix and not cluster.site.shares_python
    top = sorted({folder.split("/")[1] for folder in (*cluster.site.folders, "/site")})
    script = f"""\
        set -e
        root={cluster.base}/root
        mkdir -p $root
        mount -t tmpfs none $root
        for entry in /*; do
          if [ -L "$entry" ]; then cp -a "$entry" $root
          elif [ -d "$entry" ]; then mkdir $root$entry; mount --rbind "$entry" $root$entry; fi
        done
        for name in {" ".join(top)}; do
          mkdir -p $root/$name
          mount --bind {cluster.disk}/$name $root/$name
        done
        mount --bind {sys.prefix}/lib $root{cluster.base}/image/env/lib
        if [ $1 = node ] && {str(is_hidden).lower()}; then mount -t tmpfs none $root{sys.prefix}; fi
        mount --bind {cluster.base}/profile.d $root/etc/profile.d
        shift
        cd $root
        pivot_root . .
        umount -l .
        cd /
        exec "$@"
        """
    _write(cluster.base / "enter-root", textwrap.dedent(script))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def main() -> None:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, epilog="It needs root, on Linux.")
    parser.add_argument("--name", help="name of the cluster (the site's)")
    parser.add_argument("verb", choices=("up", "down", "login"))
    parser.add_argument("site", choices=sorted(SITES))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a command for the login node")
    options = parser.parse_args()
    cluster = SiteCluster.of(SITES[options.site], options.name or options.site)
    try:
        if options.verb == "up":
            cluster.up()
            print(f"python -m slurm.testcluster.sites login {options.site}")
        elif options.verb == "down":
            cluster.down()
        else:
            sys.exit(subprocess.run(cluster.login(*options.command), check=False).returncode)
    except RuntimeError as fault:
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
