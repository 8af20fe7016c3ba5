"""Flower's options, for `celery -A worker.fleet.app flower --conf=deploy/flowerconfig.py`.

The environment adds what differs between installations: FLOWER_BASIC_AUTH (`user:password`, required), FLOWER_DB (a
file; with it the history survives a restart), FLOWER_ADDRESS, FLOWER_PORT and FLOWER_URL_PREFIX (behind a proxy that
hands on `/<prefix>/…`). Such an option must not stand here as well: this file would win.
"""

import os
from math import inf
from pathlib import Path

if not os.environ.get("FLOWER_BASIC_AUTH"):
    raise SystemExit("Flower shows every call to whoever reaches it: set FLOWER_BASIC_AUTH to user:password")

# A window, not a lever: whoever may look may not revoke a task or shut a worker down.
read_only = True

# The workers send their events unasked. Asking every 5 s keeps Flower from stopping while Redis is away.
enable_events = False

# What is kept survives a kill up to the interval. Only Flower may write to the directory: the file is a pickle.
persistent = bool(os.environ.get("FLOWER_DB"))
state_save_interval = 5_000
if persistent:
    Path(os.environ["FLOWER_DB"]).absolute().parent.mkdir(parents=True, exist_ok=True)

# Some kB each; the records in Redis are what remembers.
max_tasks = 5_000
# A worker that was killed stays visible as offline for as long as somebody may ask where it went.
purge_offline_workers = 3_600

# A call lasts minutes to hours; with the default buckets, which end at 10 s, all of them would look alike.
task_runtime_metric_buckets = [30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, inf]

# There is one task, so its name says nothing; how a session ended is its result or its exception. The list is sorted by
# `received`, which is when the session's process was free for it.
tasks_columns = "uuid,state,worker,received,runtime,result,exception"
# "2 hours ago" in lists; a task's own page has the time.
natural_time = True
