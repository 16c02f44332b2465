"""Limit of open files of a run: what the system allows, not what a shell begins with."""

import resource

from etils import epath
from train.runs import run, stage

from siglip2_jax.train.run import Run


def test_a_run_may_open_as_many_files_as_the_system_allows(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        Run(run(stage(batch_size=16)), epath.Path(tmp_path), {}).close()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
