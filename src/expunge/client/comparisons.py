"""Comparisons of unlearning methods: the calls, and their answers as typed objects.

`expunge.unlearning.comparison` says what the numbers mean.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from expunge.client.calls import Calls, create, get, pages, post, until_final
from expunge.client.resources import FINAL_COMPARISON_STATES, Progress, Resource
from expunge.client.transport import Body

TableFormat = Literal["json", "csv", "md"]
Search = Mapping[str, Any]
Interval = tuple[float, float]

WATCH_SECONDS = 0.5
"""Between two looks at a running comparison."""


class Cell(Resource):
    """A number of one row: mean and standard deviation over seeds, interval over samples."""

    mean: float
    std: float | None = None
    interval: Interval | None = None
    n: int | None = None


class Gap(Resource):
    """A distance, 0 is best; `uncertainty` is half its 95 % interval."""

    value: float
    uncertainty: float | None = None


class Row(Resource):
    """One setting: measures in percent by column, gaps to Retrain if there is one."""

    kind: str
    label: str
    method: str | None = None
    params: dict[str, Any] | None = None
    columns: dict[str, Cell]
    forgetting_score: Cell | None = None
    minutes: Cell | None = None
    gaps: dict[str, Gap]
    avg_gap: Gap | None = None
    proxy_gap: Gap | None = None
    over_unlearned: list[str]
    failure: str | None = None


class Recommendation(Resource):
    """The setting to use, and why."""

    label: str
    method: str
    params: dict[str, Any]
    criterion: str
    why: str


class ComparisonResult(Resource):
    """The table; `recommended` is None if every setting failed."""

    columns: list[str]
    """In the order of the table."""
    rows: list[Row]
    recommended: Recommendation | None = None
    notes: list[str]


class RunProgress(Resource):
    """Where a running comparison is; a run is one setting with one seed."""

    done: int
    total: int
    label: str
    seed: int | None = None
    training: Progress | None = None
    eta_seconds: float | None = None


class Comparison(Resource):
    """Unlearning methods side by side on a model's head; lists leave `result` out."""

    id: str
    model_id: str
    checkpoint_id: str
    dataset_ids: list[str]
    control_dataset_id: str
    settings: dict[str, Any]
    state: str
    reason: str | None = None
    progress: RunProgress | None = None
    result: ComparisonResult | None = None
    files: dict[str, str] | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Comparisons(Calls):
    """The calls about comparisons, as `Client.comparisons`."""

    def create(
        self,
        model_id: str,
        dataset_ids: Sequence[str],
        methods: Sequence[Mapping[str, Any]] | None = None,
        *,
        search: Search | None = None,
        with_retrain: bool = False,
        retrain_params: Mapping[str, Any] | None = None,
        seeds: Sequence[int] = (0,),
        relearn: bool = False,
        keep_best: bool = False,
        protocol: Literal["corrected", "released"] = "corrected",
        idempotency_key: str | None = None,
        wait: bool = True,
    ) -> Comparison:
        """Compare ways to forget data sets on the model's head; state may be `failed`.

        `methods` are `{"method": …, "params": {…}, "grid": {name: [values]}}`, or else `search` is
        `{"method": …, "trials": …}`. Retries carry one Idempotency-Key: it is run once.
        """
        body = {
            "model_id": model_id,
            "dataset_ids": list(dataset_ids),
            "methods": None if methods is None else [dict(each) for each in methods],
            "search": None if search is None else dict(search),
            "with_retrain": with_retrain,
            "retrain_params": dict(retrain_params or {}),
            "seeds": list(seeds),
            "relearn": relearn,
            "keep_best": keep_best,
            "protocol": protocol,
        }
        given = Body(json={name: value for name, value in body.items() if value is not None})
        answer = create(self._transport, "/comparisons", given, idempotency_key, wait=wait)
        first = Comparison.model_validate(answer)
        if not wait:
            return first
        return until_final(
            first, lambda: self.get(first.id), FINAL_COMPARISON_STATES, self._max_wait
        )

    def get(self, comparison_id: str) -> Comparison:
        """One comparison, with its result once it is done."""
        return Comparison.model_validate(get(self._transport, f"/comparisons/{comparison_id}"))

    def cancel(self, comparison_id: str, reason: str | None = None) -> Comparison:
        """End a comparison that waits or runs; nothing of it is kept."""
        path, body = f"/comparisons/{comparison_id}/cancel", {"reason": reason}
        return Comparison.model_validate(post(self._transport, path, body, repeatable=True))

    def list(self) -> Iterator[Comparison]:
        """The caller's comparisons, without results."""
        return pages(self._transport, "/comparisons", Comparison.model_validate)

    def watch(self, comparison_id: str) -> Iterator[Comparison]:
        """The comparison each time it has changed, the last time in its final state."""
        seen: Comparison | None = None
        while seen is None or seen.state not in FINAL_COMPARISON_STATES:
            if seen is not None:
                time.sleep(WATCH_SECONDS)
            current = self.get(comparison_id)
            if current != seen:
                yield current
            seen = current

    def table(self, comparison_id: str, suffix: TableFormat = "md") -> str:
        """The finished table as JSON, CSV or Markdown text."""
        return self._file(comparison_id, f"table.{suffix}").decode()

    def chart(self, comparison_id: str, path: Path) -> Path:
        """Write the PNG chart of a finished comparison to `path` and return it."""
        path.write_bytes(self._file(comparison_id, "chart.png"))
        return path

    def scores(self, comparison_id: str) -> str:
        """How scores are spread, as CSV text: means of groups of at least 20 samples."""
        return self._file(comparison_id, "scores.csv").decode()

    def save(self, comparison_id: str, folder: Path) -> Sequence[Path]:
        """Write every file of a finished comparison into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in self.get(comparison_id).files or {}]
        for path in paths:
            path.write_bytes(self._file(comparison_id, path.name))
        return paths

    def _file(self, comparison_id: str, name: str) -> bytes:
        path = f"/comparisons/{comparison_id}/{name}"
        return self._transport.send("GET", path, repeatable=True).content
