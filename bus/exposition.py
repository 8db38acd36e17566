"""Pure. Metrics of many processes as one text for Prometheus: each sample says which process it is of."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample


def merge(texts: Mapping[str, str]) -> bytes:
    """Return the samples of all processes with the label `process`; a text that cannot be read is left out."""
    families: dict[str, Metric] = {}
    for process, text in texts.items():
        try:
            read = list(text_string_to_metric_families(text))
        except (ValueError, KeyError, IndexError):
            continue
        for family in read:
            merged = families.get(family.name)
            if merged is None:
                merged = families[family.name] = Metric(family.name, family.documentation, family.type)
            if merged.type == family.type:
                merged.samples += [_of(process, sample) for sample in family.samples]
    registry = CollectorRegistry()
    registry.register(_Read(families.values()))
    return generate_latest(registry)


def _of(process: str, sample: Sample) -> Sample:
    return sample._replace(labels={**sample.labels, "process": process})


class _Read(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
