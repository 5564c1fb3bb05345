"""What every task on a cluster gets beside its inputs, whichever engine starts it."""

from __future__ import annotations

from plmsae.stages.spec import Retry

USER = 10001
SETTINGS_MAP = "plmsae"
REGISTRY = "MLFLOW_TRACKING_URI"
SETTINGS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
SECRETS = {
    "plmsae-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "plmsae-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
# Only for tasks that tell somebody: the address is a secret by itself.
WEBHOOK_SECRET = {"plmsae-webhook": ("PLMSAE_WEBHOOK",)}
# Retry class -> attempts after the first, first pause, longest pause. A node of a spot pool takes longer to come back
# than a network.
RETRIES: dict[Retry, tuple[int, str, str]] = {"none": (0, "", ""), "io": (2, "15s", "60s"), "gpu": (3, "30s", "300s")}
