"""What other rooms need to give the one training loop a job of their own, in one place."""

from moiety.train.compute import has_fast_bf16 as has_fast_bf16
from moiety.train.compute import resolve_compute as resolve_compute
from moiety.train.expert import frozen_digest as frozen_digest
from moiety.train.loop import Job as Job
from moiety.train.loop import Loop as Loop
from moiety.train.sample import sample_sources as sample_sources
from moiety.train.stopping import resumable as resumable
