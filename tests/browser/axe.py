"""axe-core in a page of the browser tests: what people who cannot see the page, or not well, would stumble over."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def serious_violations(page: Page, selector: str | None = None) -> list[str]:
    """What axe-core calls a serious or critical violation, in the page or inside `selector`; it must find something
    to look at."""
    found = Axe().run(page, context=selector).response
    assert found["passes"], f"axe-core found nothing to check in {selector or 'the page'}"
    serious = [violation for violation in found["violations"] if violation["impact"] in ("serious", "critical")]
    return [f"{v['id']}: {v['help']} {[node['html'][:160] for node in v['nodes'][:3]]}" for v in serious]
