"""From validated configs to running ranks: run folders, submitit, and following what was started."""
