"""The store's calls that look after it: expiry, freeing, checking."""

from __future__ import annotations

from shmstore import check, expiry, upkeep
from shmstore.opened import OpenDags
from shmstore.report import Finding, GcReport
from shmstore.sweep import Order


class UpkeepCalls:
    """What ``Store`` inherits: ``set_ttl``, ``gc`` and ``check``."""

    _dags: OpenDags

    def set_ttl(self, dag_id: str, seconds: float | None) -> None:
        """Lets a DAG go once nobody has written to it or opened it for that long.

        It goes with the next ``gc``, which also happens by itself. Holding a view or
        having the DAG open does not count as use; writing and opening it do.

        Args:
            dag_id: The DAG, created if need be.
            seconds: Rounded up to whole ones; None or 0 to keep it for ever. A DAG that is
                cleared and used again begins without one.

        If the process dies here, it is either set or not.
        """
        self._dags.write_with_relief(
            dag_id, expiry.set_ttl, expiry.checked_seconds(seconds, "seconds")
        )

    def gc(self, dry_run: bool = False, *, older_than: float | None = None) -> GcReport:
        """Frees what nobody needs: what killed processes left behind, and what has expired.

        Safe beside any number of processes that use the store, and by itself done now
        and then on opening a DAG and when there is no room.

        Args:
            dry_run: Only tell what would be freed.
            older_than: Seconds; DAGs without a ``set_ttl`` of their own go, too, if they
                have been neither written to nor opened for that long.

        Returns:
            What was freed and why, and what could not be looked at: a damaged DAG does
            not stop the rest.

        If the process dies here, what is left is freed by the next gc.
        """
        older = None if older_than is None else expiry.checked_seconds(older_than, "older_than")
        return upkeep.gc(self._dags.space, Order(bool(dry_run), older, pool_kept_s=0.0))

    def check(self, fix: bool = False) -> list[Finding]:
        """Looks for whatever is not as it should be, in every DAG of the namespace.

        Manifests are held against segments and segments against manifests, indexes
        against logs, records against their checksums, totals against what is counted.
        Beside writers at work nothing is reported that only they explain.

        Args:
            fix: Repair what is derived, and free what gc would free. What is lost is
                reported with its id, and stays.

        Returns:
            The findings; none if all is well.

        If the process dies here, each repair is either done or not.
        """
        return check.check(self._dags.space, bool(fix))
