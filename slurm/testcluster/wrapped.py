#!/usr/bin/env python3
"""A stand-in for the wrapped Pythons of hpc-container-wrapper (Tykky, lumi-container-wrapper).

    python slurm/testcluster/wrapped.py FOLDER [--python PYTHON]

This writes FOLDER/bin/{python,python3,finetune}. These commands run PYTHON's environment at the
path /STAND_IN_TYKKY, which exists only in a mount namespace that they create. `sys.executable` is
below this path.

Files, variables and bind mounts have the same names and places as those of hpc-container-wrapper.
FOLDER/bin contains shell scripts, and FOLDER/_bin contains links into the environment. In the mount
namespace, FOLDER/_bin is mounted over FOLDER/bin. FOLDER/singularity replaces the container
runtime; it needs root.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

INNER = Path("/STAND_IN_TYKKY")

# A replacement for `singularity --silent exec IMAGE COMMAND …`, as far as the wrappers use it. It
# runs the command in a new root folder that contains the folders of SINGULARITY_BIND.
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
    """Write the wrappers of a Python into a new folder; return the folder of the commands."""
    environment = Path(python).absolute().parents[1]
    image = folder / "img.sqfs"  # an image file in the original, here a folder with the environment
    for path in (image / "bin", folder / "bin", folder / "_bin"):
        path.mkdir(parents=True)
    (image / "lib").symlink_to(environment / "lib")
    packages = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (folder / packages).parent.mkdir(parents=True)
    # With this link and pyvenv.cfg, Python uses FOLDER, too, as an environment.
    (folder / packages).symlink_to(INNER / packages)
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
