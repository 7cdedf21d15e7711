"""The calls about alerts: later heads that seem to know forgotten samples again."""

from collections.abc import Iterator

from expunge.client import resources as r
from expunge.client.calls import Calls, pages, post


class AlertCalls(Calls):
    """What reviews of past requests have found."""

    def alerts(self) -> Iterator[r.Alert]:
        """About the caller's requests, and requests to the caller's models."""
        return pages(self._transport, "/alerts", r.Alert.model_validate)

    def acknowledge_alert(self, alert_id: str) -> r.Alert:
        """Say, as the model's owner, that notice was taken; doing so again changes nothing."""
        answer = post(self._transport, f"/alerts/{alert_id}/acknowledge", {}, repeatable=True)
        return r.Alert.model_validate(answer)
