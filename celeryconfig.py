"""How the workers' Celery is configured; every setting that is unusual says why."""

from kombu import Exchange, Queue

from worker.fleet.publishing import RECOVERY_QUEUE, SESSIONS_QUEUE
from worker.fleet.settings import FleetSettings

_settings = FleetSettings.from_env()

broker_url = _settings.broker_url

# Nobody reads results: the record tells how a session went, and Flower lives from events.
result_backend = None
task_ignore_result = True
task_serializer = "json"
accept_content = ["json"]

# The broker's acknowledgement owns nothing. With a late one, a dropped connection starts a second copy of a live call
# a second later, and so does every call that outlives the visibility timeout.
task_acks_late = False
task_reject_on_worker_lost = False
# Whoever lost its worker is the keepers' business, and only theirs.
task_retry_on_worker_lost = False
worker_cancel_long_running_tasks_on_connection_loss = False

# A worker takes as many messages as it can run: a call that waits behind an hour-long one never starts.
worker_disable_prefetch = True
worker_prefetch_multiplier = 1
worker_enable_prefetch_count_reduction = False
# Rate limits keep messages in a bucket of the worker's memory.
worker_disable_rate_limits = True

# One session per process: a crash, a leak or a busy loop costs one call. The number of processes is fixed, because
# the liveness table is.
worker_pool = "prefork"
worker_concurrency = _settings.slots
# Fresh processes against leaks, rarely: replacing one makes the next call wait.
worker_max_tasks_per_child = 50
# A child that imports for longer than the usual 4 s on a loaded machine would be killed, over and over.
worker_proc_alive_timeout = 60.0
# The session ends itself at its maximum; these are the net below, one polite and one that kills.
task_soft_time_limit = round(_settings.max_duration) + 60
task_time_limit = round(_settings.max_duration) + 180

# A child's log lines keep their own form; nothing here prints.
worker_redirect_stdouts = False
# For Flower, from the first second on and with the states a session announces.
worker_send_task_events = True
task_send_sent_event = True

# The worker's own queue comes between the two when it starts (worker/fleet/processes.py). No message has an ETA or a
# countdown: those are fetched without limit and run again after every visibility timeout.
task_default_queue = SESSIONS_QUEUE
task_queues = [Queue(name, Exchange(name), routing_key=name) for name in (RECOVERY_QUEUE, SESSIONS_QUEUE)]

# An outage is waited for, however long it is, also by a worker that has a message in hand.
worker_consumer = "worker.fleet.consumer:Consumer"
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# As is what a server answers that takes no writes for a while: a full one, or one that is just becoming a replica.
broker_channel_error_retry = True
broker_transport_options = {
    # Covers the moment between reading a message and starting it, nothing else.
    "visibility_timeout": 60,
    # Look for such messages every 5 s instead of every 100 s.
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    # Finds a half-open connection in seconds.
    "health_check_interval": 10,
    # Without priorities one Redis list per queue is enough; the default reads four.
    "priority_steps": [0],
    # Strictly in the order they are consumed: recovery first, new sessions last.
    "queue_order_strategy": "priority",
}
