"""Build the embedded world: ``python -m tools.world --out DIR``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from safebench.errors import without_trl

THREADS = 1
"""Fixed so that a build is repeatable: sums depend on how they are split over threads."""


def main() -> None:
    """Parse the command line and run the stages that are missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.world", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for policy, proxy, judge, prompts, manifest")
    parser.add_argument("--work", type=Path, default=Path("build/world"), help="folder for what is not shipped")
    parser.add_argument("--page", type=Path, help="also write the world's page, rendered from the manifest, there")
    parser.add_argument("--stage", help="run this one stage alone, whether it was done before or not")
    parser.add_argument("--at-once", type=int, default=2, help="stages side by side, one thread each (default: 2)")
    parser.add_argument("--limit", type=int, help="use only so many pairs per split (for trials)")
    arguments = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    import torch

    from tools.world.page import write_page
    from tools.world.stages import STAGES, Build, run, run_stage

    # Checked before the first stage: some stages take minutes, and only later ones need TRL.
    try:
        import tools.world.training  # noqa: F401
    except ModuleNotFoundError as fault:
        if fault.name != "trl":
            raise
        error = without_trl("rebuilding the embedded world")
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")

    torch.set_num_threads(THREADS)
    build = Build(arguments.out, arguments.work, arguments.limit)
    if arguments.stage:
        if arguments.stage not in STAGES:
            parser.error(f"no stage {arguments.stage!r}; there are: {', '.join(STAGES)}")
        run_stage(build, arguments.stage)
        return
    run(
        build,
        lambda name: subprocess.Popen([sys.executable, "-m", "tools.world", *sys.argv[1:], "--stage", name]),
        arguments.at_once,
    )
    if arguments.page:
        write_page(arguments.out, arguments.page)


if __name__ == "__main__":
    main()
