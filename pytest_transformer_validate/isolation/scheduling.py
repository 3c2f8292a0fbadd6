"""Which worker gets what: whole models, and nothing again that has ended a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def whole_models(config: pytest.Config, log: Any) -> Any:
    """xdist's ``loadfile``, which would run the test again that a worker died of."""
    from xdist.scheduler import LoadFileScheduling

    class WholeModelScheduling(LoadFileScheduling):  # type: ignore[misc]
        def remove_node(self, node: Any) -> str | None:
            workload = self.assigned_work.pop(node)
            units = list(workload.values())
            waiting = (name for unit in units for name, done in unit.items() if not done)
            crashed = None if getattr(node, "between_tests", False) else next(waiting, None)
            for unit in units:
                if crashed in unit:
                    unit[crashed] = True
            for scope, unit in workload.items():
                if not all(unit.values()):
                    self.workqueue[scope] = unit
            for other in self.assigned_work:
                self._reschedule(other)
            return crashed

        def _reschedule(self, node: Any) -> None:
            """Give a worker work; it runs a test only when it knows the next one, or that there
            is none, so that one test alone would wait for ever."""
            super()._reschedule(node)
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                super()._reschedule(node)

    return WholeModelScheduling(config, log)
