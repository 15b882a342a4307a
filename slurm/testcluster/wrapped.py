#!/usr/bin/env python3
"""A stand-in for the wrapped Pythons of hpc-container-wrapper (Tykky, lumi-container-wrapper).

    python slurm/testcluster/wrapped.py FOLDER [--python PYTHON]

This writes FOLDER/bin/{python,python3,finetune}: commands that run PYTHON's environment at
/STAND_IN_TYKKY, in a mount namespace of their own. The path does not exist outside, and
`sys.executable` is a path below it. Names and arrangement of files, variables and bind mounts are
those of hpc-container-wrapper: FOLDER/bin has shell scripts; inside, FOLDER/_bin, with links into
the environment, is mounted over it. FOLDER/singularity stands in for the container runtime. It
needs root.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

INNER = Path("/STAND_IN_TYKKY")

# The parts of `singularity --silent exec IMAGE COMMAND …` that the wrappers use: a new root folder
# with the folders of SINGULARITY_BIND.
RUNTIME = """\
#!/bin/bash
if [ "$1 $2" != "--silent exec" ]; then
    echo "stand-in singularity: only '--silent exec IMAGE COMMAND …'" >&2
    exit 255
fi
image=$(realpath -s "$3"); shift 3
export SINGULARITY_CONTAINER=$image APPTAINER_CONTAINER=$image
export SINGULARITY_NAME=${image##*/} APPTAINER_NAME=${image##*/}
exec unshare --mount --propagation private bash -c '
    root=/run/finetune-stand-in/apptainer/mnt/session
    mkdir -p $root && mount -t tmpfs $root $root && mount --make-unbindable $root || exit 255
    mkdir $root/.singularity.d
    IFS=, read -ra binds <<<"/dev,/proc,/sys,$SINGULARITY_BIND"
    for bind in "${binds[@]}"; do
        IFS=: read -r from to _ <<<"$bind"
        mkdir -p "$root/${to:-$from}" && mount --rbind "$from" "$root/${to:-$from}" || exit 255
    done
    folder=$PWD
    exec chroot $root bash -c "cd \\"\\$0\\" && exec \\"\\$@\\"" "$folder" "$@"
' singularity "$@"
"""

COMMON = """\
#!/bin/bash
_C_DIR="$( cd "$( dirname "${BASH_SOURCE[0]}" )" >/dev/null 2>&1 && pwd )"
CONTAINER_IMAGE=container.sif
SQFS_IMAGE=img.sqfs
INSTALLATION_PATH=@INNER@
export SINGULARITYENV_PATH="$OLD_PATH"
if grep -q 'singularity/mnt/session\\|apptainer/mnt/session' /proc/self/mountinfo; then
    export _CW_IN_CONTAINER=Yes
else
    unset _CW_IN_CONTAINER
    export _CW_IS_ISOLATED=no
fi
if [[ ! ${_CW_IN_CONTAINER+defined} && ${SINGULARITY_NAME+defined} ]]; then
    unset SINGULARITY_NAME SINGULARITY_BIND SINGULARITY_CONTAINER
    unset APPTAINER_NAME APPTAINER_BIND APPTAINER_CONTAINER
fi
for d in $(/usr/bin/ls -1 / | /usr/bin/awk '!/dev|proc|sys|lost/' | /usr/bin/sed 's/^/\\//g'); do
    test -d $d && SINGULARITY_BIND="${SINGULARITY_BIND:+$SINGULARITY_BIND,}$d"
done
SINGULARITY_BIND="$SINGULARITY_BIND,$(readlink -f $_C_DIR/_bin):$(readlink -f $_C_DIR/bin)"
export SINGULARITY_BIND=$SINGULARITY_BIND,$DIR/../$SQFS_IMAGE:$INSTALLATION_PATH:image-src=/
export env_root=@INNER@/
"""

WRAPPER = """\
#!/bin/bash
export OLD_PATH=$PATH
export PATH="/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/bin"
SOURCE="${BASH_SOURCE[0]}"
_O_SOURCE=$SOURCE
while [ -h "$SOURCE" ]; do
  DIR="$( cd -P "$( dirname "$SOURCE" )" >/dev/null 2>&1 && pwd )"
  SOURCE="$(readlink "$SOURCE")"
  [[ $SOURCE != /* ]] && SOURCE="$DIR/$SOURCE"
done
DIR="$( cd -P "$( dirname "$SOURCE" )" >/dev/null 2>&1 && pwd )"
source $DIR/../common.sh
if [[ ${_CW_IN_CONTAINER+defined} ]]; then
    export PATH="$OLD_PATH"
    exec -a $_O_SOURCE $DIR/../_bin/@TARGET@ "$@"
else
    export PATH="$OLD_PATH"
    exec $DIR/../singularity --silent exec $DIR/../$CONTAINER_IMAGE \\
        bash -c "exec -a $_O_SOURCE $DIR/@TARGET@ $( test $# -eq 0 || printf " %q" "$@" )"
fi
"""

SCRIPT = f"""\
#!{INNER}/bin/python
import sys
from finetune.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""


def wrap(folder: Path, python: str = sys.executable) -> Path:
    """Write the wrappers into a new folder; return the folder of their commands, FOLDER/bin."""
    environment = Path(python).absolute().parents[1]
    image = folder / "img.sqfs"  # a folder here; the environment as seen inside
    for path in (image / "bin", folder / "bin", folder / "_bin"):
        path.mkdir(parents=True)
    (image / "lib").symlink_to(environment / "lib")
    packages = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (folder / packages).parent.mkdir(parents=True)
    (folder / packages).symlink_to(INNER / packages)  # Python then takes FOLDER for an environment, too
    for place in (image, folder):
        shutil.copy(environment / "pyvenv.cfg", place)
    (image / "bin" / "finetune").write_text(SCRIPT)
    for name in ("python", "python3"):
        (image / "bin" / name).symlink_to(Path(python).resolve())
    (folder / "container.sif").touch()
    files = {folder / "singularity": RUNTIME, folder / "common.sh": COMMON.replace("@INNER@", str(INNER))}
    for name in ("python", "python3", "finetune"):
        files[folder / "bin" / name] = WRAPPER.replace("@TARGET@", name)
        (folder / "_bin" / name).symlink_to(INNER / "bin" / name)
    for path, text in files.items():
        path.write_text(text)
        path.chmod(0o755)
    (image / "bin" / "finetune").chmod(0o755)
    return folder / "bin"


if __name__ == "__main__":
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, epilog="It needs root, on Linux.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--python", default=sys.executable, help="Python of a virtual environment that has finetune"
    )
    options = parser.parse_args()
    print(f'export PATH="{wrap(options.folder.absolute(), options.python)}:$PATH"')
