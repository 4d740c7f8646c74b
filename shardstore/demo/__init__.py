"""The demo: one schedule, twice at once: on a fenced `.jsonl`, and on shardstore.

    transcript   a transcript's lines, cut into history, turns and model calls
    generate     a transcript, where none is given
    schedule     who does what when: the main lane's turns, a second message, heartbeat, cron, hook, mirror
    fence        what agent gateways do today: a lock file, and a fingerprint while the model thinks
    sides        the two places to write to, behind one interface
    lanes        the processes: each runs its part of the schedule on one side
    count        what really lies there afterwards
    run          starts everything, gathers what the lanes report, counts

Rule: the same lanes run on both sides and know nothing of the outcome. No number is assumed anywhere: what was lost
and what was kept is found by reading the file, and the session, when all processes have ended.
"""

from __future__ import annotations

from shardstore.demo.count import Outcome, Tenant
from shardstore.demo.lanes import Event
from shardstore.demo.run import Options, Report, Watcher, run_demo
from shardstore.demo.schedule import Schedule, Timing

__all__ = ["Event", "Options", "Outcome", "Report", "Schedule", "Tenant", "Timing", "Watcher", "run_demo"]
