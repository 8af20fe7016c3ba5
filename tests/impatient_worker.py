"""The product's HTTP worker with deadlines that a test can wait for."""

from api.http_worker import HttpWorker


class ImpatientWorker(HttpWorker):
    """Every bound is short."""

    head_within = 0.6
    body_within = 0.6
    sent_within = 0.6
    finish_within = 2.0
