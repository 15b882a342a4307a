# Each bash of an imitated site sources this file (BASH_ENV). It defines the part of `module` that our profiles use.
# A module is a file of shell commands. Its name is its path relative to a folder in MODULEPATH.

need_not() {  # module files call this; it fails if the module $1, with which they conflict, is loaded
  case ":$LOADEDMODULES:" in *":$1:"*)
    echo "Lmod has detected the following error: cannot load module \"$MODULE\" because $1 is loaded" >&2
    return 1
  esac
}

load_module() {
  local MODULE=$1 folder
  local IFS=:
  for folder in $MODULEPATH; do
    if [ -f "$folder/$MODULE" ]; then
      unset IFS
      . "$folder/$MODULE" || return 1
      export MODULEPATH LOADEDMODULES="$LOADEDMODULES${LOADEDMODULES:+:}$MODULE"
      return
    fi
  done
  echo "Lmod has detected the following error: The following module(s) are unknown: \"$MODULE\"" >&2
  return 1
}

unload_module() {
  local loaded=":$LOADEDMODULES:"
  loaded=${loaded//":$1:"/:}
  loaded=${loaded#:}
  export LOADEDMODULES=${loaded%:}
}

module() {
  echo "${SLURM_JOB_ID:-login}: module $*" >>/site/modules.log
  while [[ $1 == -* ]]; do shift; done
  local verb=$1 name
  shift
  case $verb in
    reset | purge) export MODULEPATH=/site/modules LOADEDMODULES= ;;
    use)
      if [ ! -d "$1" ]; then echo "Lmod Warning: the folder $1 does not exist" >&2; return 1; fi
      export MODULEPATH=$1:$MODULEPATH
      ;;
    load | add) for name; do load_module "$name" || return; done ;;
    unload) for name; do unload_module "$name"; done ;;
    swap) unload_module "$1"; load_module "$2" ;;
    list) echo "$LOADEDMODULES" ;;
    *) echo "module: unknown command $verb" >&2; return 1 ;;
  esac
}

ml() { if [ $# -eq 0 ]; then module list; else module load "$@"; fi; }
