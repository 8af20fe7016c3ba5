# One image for the agent service, the control plane, the worker and Flower; a container differs in its command.
# Tags, not digests: `docker buildx imagetools inspect` shows a tag's digest to whoever wants to pin one.

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml requirements.lock deploy/product_lock.py ./
# Without compiler and pip in the final stage: only wheels, each with a hash of the lock. The models for voice activity
# and end of turn are part of one (livekit-local-inference), so nothing is fetched when a container runs.
RUN python product_lock.py pyproject.toml requirements.lock > product.lock \
    && python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --disable-pip-version-check --no-cache-dir \
        --no-deps --only-binary :all: --require-hashes --requirement product.lock \
    && python -m pip --python /opt/venv/bin/python check
WORKDIR /app
COPY celeryconfig.py ./
COPY api/ api/
COPY deploy/flowerconfig.py deploy/
COPY graphs/ graphs/
COPY worker/ worker/
# Nobody can write bytecode later; unchecked, because a copy may get another time than its source. Whoever built it, the
# user below can read it.
RUN python -m compileall -q --invalidation-mode unchecked-hash . && chmod -R go=rX .

FROM python:3.11.14-slim-bookworm
# The number is fixed, for volumes and for rules such as Kubernetes' runAsUser. There is no home: nothing is kept.
RUN groupadd --gid 10001 muster \
    && useradd --uid 10001 --gid muster --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin muster \
    && install --directory --owner muster --group muster --mode 0700 /run/muster /var/lib/muster
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV HOME=/nonexistent \
    MUSTER_HEALTH_FILE=/run/muster/worker \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
# A worker drains on it, gunicorn and Flower stop.
STOPSIGNAL SIGTERM
# Asks neither the broker nor the worker's event loop, as `inspect ping` does: that costs seconds of CPU and fails when
# Redis is away, which no call has to die of.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "worker.fleet.health", "/run/muster/worker"]
# `%n` is the container's own name, so each worker has a name and a queue of its own, however many are started.
CMD ["celery", "-A", "worker.fleet.app", "worker", "--without-mingle", "--without-gossip", "-n", "worker-%n@%h", "--loglevel", "INFO"]
