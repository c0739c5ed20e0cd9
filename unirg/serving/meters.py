"""What Prometheus reads at /metrics of a predictor: counts and times, and no word of any request.

KServe exposes the registry; labels are HTTP statuses, our own words and the model's identity.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REQUESTS = Counter("unirg_requests", "Chats answered, by HTTP status (499: the client hung up).", ["status"])
TOKENS = Counter("unirg_tokens", "Tokens of completed chats, of the prompt and of the completion.", ["kind"])
LATENCY = Histogram("unirg_request_seconds", "From a chat's headers to its answer.", buckets=SECONDS)
WAIT = Histogram("unirg_queue_seconds", "From a chat's acceptance to its batch.", buckets=SECONDS)
GENERATION = Histogram("unirg_batch_seconds", "Generation of one batch.", buckets=SECONDS)
BATCH = Histogram("unirg_batch_size", "Chats generated together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
QUEUE = Gauge("unirg_queue_length", "Chats accepted that no batch has taken yet.")
MODEL = Gauge("unirg_model_info", "1; the labels say which model answers.", ["model", "digest"])
