"""Run the commands of a page in docs/sites on an imitation of its site, and compare the outputs.

    python -m slurm.testcluster.walk lumi             exit with 1 on a failure or a difference
    python -m slurm.testcluster.walk lumi --write     write the actual outputs into the page

docs/walk.py reads the commands and the expected outputs from the page. All commands run in the same
shell on the login node.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from docs.walk import Shell, walk
from slurm.testcluster.site_profiles import SITES
from slurm.testcluster.sites import SiteCluster

PAGES = Path(__file__).parents[2] / "docs" / "sites"


def walk_on_login_node(cluster: SiteCluster, text: str, *, write: bool = False) -> tuple[list[str], str]:
    """Run the commands of a page on the login node; see docs.walk.walk for arguments and result."""
    shell = Shell(cluster.login("bash", "--noprofile", "--norc"))
    try:
        return walk(shell, text, write=write)
    finally:
        shell.close()


def main() -> None:
    summary = __doc__.partition("\n")[0]
    sites = sorted(path.stem for path in PAGES.glob("*.md") if path.stem in SITES)
    parser = argparse.ArgumentParser(description=summary, epilog="It needs root, on Linux.")
    parser.add_argument("site", choices=sites)
    parser.add_argument("--write", action="store_true", help="write the actual outputs into the page")
    options = parser.parse_args()
    page = PAGES / f"{options.site}.md"
    cluster = SiteCluster.of(SITES[options.site], f"walk-{options.site}")
    cluster.up(owner=os.getpid())
    try:
        faults, text = walk_on_login_node(cluster, page.read_text(encoding="utf-8"), write=options.write)
    finally:
        cluster.down()
    if options.write and not faults:
        page.write_text(text, encoding="utf-8")
    if faults:
        sys.exit("\n\n".join([f"error: {page}: outputs differ from the page:", *faults]))


if __name__ == "__main__":
    main()
