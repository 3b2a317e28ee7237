"""How `make test` shares the tests among its workers (pytest-xdist, `--dist loadfile`).

The long files come first, so that no worker ends with one alone: browser tests, then notebooks, then the rest. All
browser tests go to one worker, one after another: two browsers with two kernels that train are too much for two cores.
A notebook's cells stay together because they share a kernel.

Property tests have no deadline: how long an example takes says nothing on a machine that also trains and browses.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

import rlhf_lab  # noqa: F401 (before any test imports torch: threads that spin made training ten times slower)

settings.register_profile("lab", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lab")


def _file(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


def _is_browser_test(nodeid: str) -> bool:
    return "browser" in _file(nodeid)


def _rank(item: pytest.Item) -> int:
    if _is_browser_test(item.nodeid):
        return 0
    return 1 if _file(item.nodeid).endswith(".ipynb") else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)  # stable: the order within a file stays


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "browser" if _is_browser_test(nodeid) else _file(nodeid)

    config.option.loadscopereorder = False  # keep our order; the default puts files with many tests first
    return Scheduling(config, log)
