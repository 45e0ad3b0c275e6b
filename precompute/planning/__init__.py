"""`caskd plan`: policies, tokenisation, corpus statistics, forecast and probe."""

from caskd.precompute.planning.identity import Job, check_job
from caskd.precompute.planning.planner import plan, plan_command, plan_job, survey
from caskd.precompute.planning.policies import check_non_finite

__all__ = [
    "Job",
    "check_job",
    "check_non_finite",
    "plan",
    "plan_command",
    "plan_job",
    "survey",
]
