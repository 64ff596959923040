"""What a training job will do, settled and checked before any device is touched."""

from mstl.job.identity import record
from mstl.job.plan import plan_job
from mstl.job.request import Job, Parent, Request, Resume
from mstl.job.world import check_world

__all__ = ["Job", "Parent", "Request", "Resume", "check_world", "plan_job", "record"]
