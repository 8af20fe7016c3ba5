"""How the Celery of text turns is configured: as the calls' one is, but for what is said here."""

from kombu import Exchange, Queue

from celeryconfig import *  # noqa: F403
from worker.chat.settings import ChatSettings
from worker.conversation.text_turns import TURN_LIMIT
from worker.fleet.publishing import CHAT_QUEUE

task_default_queue = CHAT_QUEUE
task_queues = [Queue(CHAT_QUEUE, Exchange(CHAT_QUEUE), routing_key=CHAT_QUEUE)]

worker_concurrency = ChatSettings.from_env().chat_processes
# A process keeps its connections from one turn to the next; it is replaced against leaks.
worker_max_tasks_per_child = 1000
# A turn ends itself at its limit; this is the net below, and the polite one comes too late: it would break the loop.
task_soft_time_limit = round(TURN_LIMIT) + 40
task_time_limit = round(TURN_LIMIT) + 30
