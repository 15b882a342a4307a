"""The sites that the test cluster can imitate: queues, accounts, modules, Python, containers."""

from __future__ import annotations

from dataclasses import dataclass, field

from slurm.testcluster.layout import Layout, Limits, Partition

NRIS_GPU = "/cluster/software/NRIS/GPU/modules"


NCCL = "NCCL/2.26.6-GCCcore-14.2.0-CUDA-12.8.0"


@dataclass(frozen=True)
class Site:
    """An imitated site.

    Attributes:
        folders: top folders of its shared file systems.
        home: the user's home folder, in one of `folders`. `walk` starts there.
        image: path of the container image with the Python for training; None: the site has none.
        wrapped: folder of the wrapped Python (wrapped.py) that runs `finetune` on the login node;
            None: a virtual environment runs it.
        shares_python: True if compute nodes, too, have the virtual environment of the login node.
        python: the version that `python3` reports.
        modules: the contents of module files, by path. Their lines are shell commands. The files'
            folders can be given to `module use`.
        loaded: modules that are loaded in a new login shell.
        programs: bodies of further shell scripts on PATH, by name.
        environment: further variables of the login shell.
    """

    name: str
    layout: Layout
    login_host: str = "login1"
    folders: tuple[str, ...] = ("/cluster",)
    home: str = "/cluster/home/kari"
    image: str | None = None
    wrapped: str | None = None
    shares_python: bool = False
    python: str = "3.6.15"
    modules: dict[str, str] = field(default_factory=dict)
    loaded: str = ""
    programs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


DENIED = "echo 'slurm_load_partitions: Access/permission denied' >&2; exit 1"


CRAY_PYTHON = "export PATH=/site/newer-python/bin:$PATH"


LUMI = Site(
    name="lumi",
    layout=Layout(
        partitions=(
            Partition(
                "standard-g",
                "2-00:00:00",
                whole_nodes=True,
                limits=Limits(max_submitted=210, max_running=200),
            ),
            Partition(
                "small-g", "3-00:00:00", max_nodes=4, limits=Limits(max_submitted=210, max_running=200)
            ),
            Partition("dev-g", "03:00:00", max_nodes=32, limits=Limits(max_submitted=2, max_running=1)),
            Partition("small", "3-00:00:00", max_nodes=4, limits=Limits(max_submitted=220, max_running=200)),
        ),
        accounts=("project_465001234", "project_465000000"),
        gpus=(("", 8),),
        cpus=56,
        memory_mb=480 * 1024,
        interface="hsn0",
        login_hosts=("uan01",),
    ),
    login_host="uan01",
    folders=("/users", "/project", "/projappl", "/scratch", "/flash", "/appl"),
    home="/users/kari",
    image="/appl/local/laifs/containers/lumi-multitorch-full-latest.sif",
    wrapped="/projappl/project_465001234/finetune",
    modules={
        "/appl/local/laifs/modules/lumi-aif-singularity-bindings": (
            "export SINGULARITY_BIND=/project,/projappl,/scratch,/flash,/appl"
        ),
        "/site/modules/CrayEnv": "",
        "/site/modules/cray-python": CRAY_PYTHON,
    },
    loaded="craype-x86-rome",
    programs={"lumi-allocations": "echo 'project_465001234   GPU  120/5000 (2.4%)'"},
)


OLIVIA = Site(
    name="olivia",
    layout=Layout(
        partitions=(
            Partition("small", is_default=True, max_nodes=1),
            Partition("large", whole_nodes=True, max_nodes=9),
            Partition("accel", max_nodes=8),
        ),
        qualities=(("devel", Limits(max_time="02:00:00", max_gpus=16)),),
        accounts=("nn30001k", "nn9999k", "nn9999o"),
        gpus=(("", 4),),
        cpus=288,
        memory_mb=808 * 1024,
        interface="hsn0",
    ),
    image="/cluster/projects/nn30001k/finetune.sif",
    wrapped="/cluster/projects/nn30001k/finetune",
    modules={
        "/site/modules/NRIS/GPU": f"need_not NRIS/Login\nMODULEPATH={NRIS_GPU}:$MODULEPATH",
        "/site/modules/NRIS/Login": "",
        "/site/modules/cray-python": CRAY_PYTHON,
        f"{NRIS_GPU}/{NCCL}": "\n".join(
            f"mkdir -p {NRIS_GPU}/{name}/lib; export {variable}={NRIS_GPU}/{name}"
            for name, variable in (
                ("libfabric", "EBROOTLIBFABRIC"),
                ("nccl", "EBROOTNCCL"),
                ("plugin", "EBROOTAWSMINOFIMINNCCL"),
            )
        ),
    },
    loaded="NRIS/Login",
    programs={
        "projects": "printf 'nn30001k\\nnn9999k\\n'",
        "python3.11": 'exec /site/newer-python/bin/python3 "$@"',
    },
)


SAGA = Site(
    name="saga",
    layout=Layout(
        partitions=(
            Partition("normal", is_default=True),
            Partition("bigmem", "14-00:00:00"),
            Partition("accel", "14-00:00:00", max_nodes=7),
            Partition("a100", "14-00:00:00", max_nodes=7),
        ),
        qualities=(("devel", Limits(max_time="02:00:00")), ("optimist", Limits())),
        accounts=("nn9999k",),
        gpus=(("", 4),),
        cpus=32,
        memory_mb=1000 * 1024,
    ),
    shares_python=True,
    modules={
        "/site/modules/StdEnv": "",
        "/site/modules/Zen2Env": "need_not StdEnv",
        "/site/modules/cray-python": CRAY_PYTHON,
    },
    loaded="StdEnv",
    programs={"projects": "echo nn9999k"},
)


BETZY = Site(
    name="betzy",
    layout=Layout(
        partitions=(
            Partition("normal", "4-00:00:00", is_default=True, whole_nodes=True),
            Partition("preproc", "1-00:00:00", max_nodes=1),
            Partition("accel", max_nodes=3),
        ),
        qualities=(("devel", Limits(max_time="01:00:00")), ("preproc", Limits(max_time="1-00:00:00"))),
        accounts=("nn9999k",),
        gpus=(("", 4),),
        cpus=64,
        memory_mb=495 * 1024,
    ),
)


MARENOSTRUM5 = Site(
    name="marenostrum5",
    layout=Layout(
        partitions=(
            Partition("acc", "3-00:00:00", is_default=True, max_nodes=100),
            Partition("gpp", "3-00:00:00"),
        ),
        qualities=(
            ("acc_ehpc", Limits(max_time="3-00:00:00", max_submitted=366)),
            ("acc_debug", Limits(max_time="02:00:00", max_submitted=1)),
            ("gp_ehpc", Limits(max_time="3-00:00:00")),
            ("gp_debug", Limits(max_time="02:00:00")),
        ),
        accounts=("ehpc123",),
        gpus=(("", 4),),
        cpus=80,
        memory_mb=512 * 1024,
        interface="ib0",
    ),
    folders=("/gpfs",),
    home="/gpfs/home/kari",
    image="/gpfs/projects/ehpc123/pytorch.sif",
    python="3.9.18",
    programs={"sinfo": DENIED},
    environment={"SBATCH_EXPORT": "NONE"},  # as Open OnDemand sets it
)


JUPITER = Site(
    name="jupiter",
    layout=Layout(
        partitions=(Partition("booster", "12:00:00", is_default=True, whole_nodes=True),),
        accounts=("jureap123",),
        gpus=(("", 4),),
        cpus=288,
        memory_mb=800 * 1024,
        interface="ib0",
        requeue=False,
    ),
    folders=("/e",),
    home="/e/home/kari",
    image="/e/project/jureap123/pytorch.sif",
    python="3.9.18",
)


# For the following sites, the tests need only the queues.
LEONARDO = Site(
    name="leonardo",
    layout=Layout(
        partitions=(
            Partition("boost_usr_prod", "1-00:00:00", is_default=True, max_nodes=64),
            Partition("lrd_all_serial", "04:00:00", max_nodes=1),
        ),
        qualities=(
            ("boost_qos_lprod", Limits(max_time="4-00:00:00")),
            ("boost_qos_dbg", Limits(max_time="00:30:00")),
        ),
        accounts=("euhpc_a01_001",),
        gpus=(("", 4),),
        cpus=32,
        memory_mb=503 * 1024,
    ),
)


JUWELS_BOOSTER = Site(
    name="juwels_booster",
    layout=Layout(partitions=(Partition("booster", "1-00:00:00", is_default=True),), cpus=48),
)


FOX = Site(
    name="fox",
    layout=Layout(partitions=(Partition("accel"), Partition("normal")), accounts=("ec11",), cpus=96),
)


IDUN = Site(
    name="idun",
    layout=Layout(
        partitions=(Partition("GPUQ", "14-00:00:00"), Partition("CPUQ", "14-00:00:00")),
        accounts=("share-ie-idi",),
        gpus=(("a100", 8), ("h100", 8), ("v100", 8), ("p100", 8)),
        features="gpu80g,gpu40g",
    ),
)


EX3 = Site(
    name="ex3",
    layout=Layout(partitions=(Partition("dgx2q"), Partition("gh200q"), Partition("defq")), cpus=96),
)


ARRHENIUS = Site(
    name="arrhenius",
    layout=Layout(
        partitions=(Partition("gpu", "3-00:00:00"), Partition("cpu")),
        accounts=("naiss2026-1-23-gpu",),
        cpus=288,
    ),
)


SITES = {
    site.name: site
    for site in (
        LUMI,
        OLIVIA,
        SAGA,
        BETZY,
        MARENOSTRUM5,
        JUPITER,
        LEONARDO,
        JUWELS_BOOSTER,
        FOX,
        IDUN,
        EX3,
        ARRHENIUS,
    )
}
