"""Who sends, and the exporter as a whole."""

import socket
import uuid

import pytest

from fabrictap import catalog
from fabrictap.config import Config, ConfigError, Export, Otlp, Resource, Signal
from fabrictap.export import resource
from fabrictap.export.exporter import Exporter
from fabrictap.ledger.flows import Flows
from fabrictap.series import SeriesTable
from fabrictap.version import VERSION

SECOND = 10**9

# --- who sends ------------------------------------------------------------------------------------


def test_the_resource_names_service_host_and_sdk():
    made = resource.attributes(Resource())
    assert (made["service.name"], made["service.version"]) == ("fabrictap", VERSION)
    assert made["host.name"] == socket.gethostname()
    assert made["os.type"] == "linux"
    assert made["telemetry.sdk.language"] == "python"
    assert uuid.UUID(made["service.instance.id"])


def test_configured_attributes_win_and_a_configured_service_name_wins_over_them():
    own = {"host.name": "mine", "k8s.node.name": "n1", "service.name": "attribute"}
    made = resource.attributes(Resource(attributes=own))
    assert (made["host.name"], made["k8s.node.name"], made["service.name"]) == ("mine", "n1", "attribute")
    assert resource.attributes(Resource(service_name="name", attributes=own))["service.name"] == "name"


def test_the_instance_is_the_same_after_a_restart_where_there_is_a_machine_id(tmp_path):
    machine_id = tmp_path / "machine-id"

    def detect(text):
        machine_id.write_text(text)
        return resource.attributes(Resource(), (str(machine_id),))

    one = detect("f0" * 16 + "\n")
    assert one["host.id"] == "f0" * 16
    assert detect("f0" * 16)["service.instance.id"] == one["service.instance.id"]
    assert detect("0f" * 16)["service.instance.id"] != one["service.instance.id"]


@pytest.mark.parametrize("content", [None, b"", b"uninitialized\n", b"\xff\xfe"])
def test_without_a_machine_id_there_is_no_host_id_and_a_random_instance(tmp_path, content):
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_bytes(content)
    made = [resource.attributes(Resource(), (str(file),)) for _ in range(2)]
    assert "host.id" not in made[0]
    assert made[0]["service.instance.id"] != made[1]["service.instance.id"]


# --- the exporter as a whole ----------------------------------------------------------------------


def test_with_everything_off_spans_and_ended_series_still_go_away():
    off = Signal(enabled=False)
    table, flows = SeriesTable(10), Flows(10, SECOND)
    exporter = Exporter(Config(export=Export(otlp=Otlp(metrics=off, traces=off, logs=off))), {}, table, flows)
    series = table.series(catalog.VERBS_IO, {}, SECOND)
    series.set(1, SECOND)
    table.end(series)
    for step in range(3):
        exporter.collect((step + 2) * SECOND)
        exporter.ship()
    assert len(table) == 0
    assert exporter.flush(0)
    exporter.close()
    assert list(exporter.stats.counts()) == []


def test_an_endpoint_that_cannot_be_used_is_a_configuration_error():
    config = Config(export=Export(otlp=Otlp(traces=Signal(endpoint="ftp://x"))))
    with pytest.raises(ConfigError, match=r"export\.otlp\.traces\.endpoint: 'ftp://x'"):
        Exporter(config, {}, SeriesTable(1), Flows(1, SECOND))
