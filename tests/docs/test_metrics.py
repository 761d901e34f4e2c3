"""docs/metrics.md lists what is exported, and nothing else."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pagein.daemon.metrics import catalogue
from pagein.daemon.metrics.collector import Halves
from pagein.daemon.tally import Now, Tally
from pagein.protocol.numbers import Numbers

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def test_the_table_is_what_is_exported() -> None:
    tally = Tally()
    tally.answered("example.org", "206")
    registry = CollectorRegistry()
    registry.register(Halves(tally, lambda: Now(0, 0.0, 0, 0), Numbers()))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    exported = {
        family.name + "_total" * (family.type == "counter"): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
            family.documentation,
        )
        for family in families
    }
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in ROW.findall(PAGE.read_text())
    }
    assert documented == exported
    named = {each.name for each in (*catalogue.OURS, *catalogue.KERNEL_HALF)}
    assert set(exported) == named


def test_without_a_kernel_half_of_ours_its_numbers_are_left_out() -> None:
    registry = CollectorRegistry()
    registry.register(Halves(Tally(), lambda: Now(1, 2.5, 3, 4), None))
    text = generate_latest(registry).decode()
    assert not [each.name for each in catalogue.KERNEL_HALF if each.name in text]
    assert "\npagein_waiting_reads 1.0\n" in text
    assert "\npagein_oldest_waiting_read_age_seconds 2.5\n" in text
