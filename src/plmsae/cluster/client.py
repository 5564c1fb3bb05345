"""KFP's client without its habits: no browser, no prompt, no file of the user read or written, no endless wait."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import kfp_server_api
import urllib3

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kfp

from kfp_server_api.rest import RESTClientObject

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0


class NotKfpError(Exception):
    """What answers at the address is not the API of Kubeflow Pipelines."""


class _Rest(RESTClientObject):  # type: ignore[misc]
    """Gives every request a time limit; KFP's own client sets none."""

    def request(self, *args: Any, _request_timeout: Any = None, **kwargs: Any) -> Any:
        """One request, as KFP's client makes it."""
        return super().request(*args, _request_timeout=_request_timeout or (CONNECT_SECONDS, ANSWER_SECONDS), **kwargs)


class Client(kfp.Client):  # type: ignore[misc]
    """A `kfp.Client` for a given address.

    Args:
        host: Address of the API, with its scheme.
        namespace: Namespace of a multi-user installation, else None.
        token: Bearer token, or None.

    Attributes:
        multi_user: Whether the installation keeps its users apart by namespace.

    Raises:
        NotKfpError: Something else answers at the address.
        kfp_server_api.ApiException: The API refuses.
        urllib3.exceptions.HTTPError: Nothing answers.
    """

    def __init__(self, host: str, namespace: str | None, token: str | None) -> None:
        self._token = token
        self._namespace = namespace
        self.multi_user = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(host=host)
        self.runs.api_client.rest_client = _Rest(self._existing_config)
        if namespace:  # without one, KFP's constructor has asked already
            self.get_kfp_healthz()

    def _load_config(self, host: str, *_: Any) -> Any:
        """The token of the environment and nothing else: KFP would go on to Google's log-in and to kubeconfig."""
        config = kfp_server_api.Configuration()
        config.host = host
        config.ssl_ca_cert = os.environ.get("SSL_CERT_FILE") or None
        # No redirects: they lead to a log-in page, and a token must not follow them.
        config.retries = urllib3.Retry(
            total=None, connect=0, read=0, redirect=0, status=0, other=0, raise_on_redirect=False
        )
        if self._token:
            config.api_key["authorization"] = self._token
            config.api_key_prefix["authorization"] = "Bearer"
        return config

    def _load_context_setting_or_default(self) -> None:
        """In place of ~/.config/kfp/context.json, which may belong to another cluster."""
        self._context_setting = {"namespace": self._namespace or ""}

    def set_user_namespace(self, namespace: str) -> None:
        """Set the namespace of this client; KFP's own method writes it to the user's home as well."""
        self._namespace = namespace
        self._context_setting["namespace"] = namespace

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """Ask once, and make sure that it is KFP that answers; KFP's own method tries for half a minute."""
        del sleep_duration
        answer = self._healthz_api.healthz_service_get_healthz(
            _preload_content=False, _request_timeout=(CONNECT_SECONDS, 2 * CONNECT_SECONDS)
        )
        try:
            health = json.loads(answer.data)
        except ValueError as error:
            raise NotKfpError("the answer is not JSON") from error
        if not isinstance(health, dict) or not isinstance(health.get("multi_user", False), bool):
            raise NotKfpError("the answer is not KFP's")
        self.multi_user = health.get("multi_user", False)
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=self.multi_user)
