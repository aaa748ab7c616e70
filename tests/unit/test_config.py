"""The configuration and the standard OTEL_* variables."""

import re

import pytest

from fabrictap import config
from fabrictap.config import ConfigError, load, parse_duration, parse_size


def settings(*pairs, environ=None, file=None):
    return load(file, environ or {}, pairs)


def error(*pairs, environ=None, file=None):
    with pytest.raises(ConfigError) as caught:
        settings(*pairs, environ=environ, file=file)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "fabrictap.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_without_anything_there_are_defaults():
    made = settings()
    assert made == config.Config()
    assert made.export.otlp.metrics.endpoint == "http://localhost:4317"
    assert made.devices.allow == ["*"]


def test_two_configurations_share_nothing():
    one, other = settings(), settings()
    one.devices.allow.append("mlx5_*")
    one.resource.attributes["a"] = "b"
    assert (other.devices.allow, other.resource.attributes) == (["*"], {})


# --- precedence -----------------------------------------------------------------------------------


def test_later_wins_from_file_to_otel_to_fabrictap_to_set(yaml_file):
    file = yaml_file("export: {interval: 1s, otlp: {queue: 7}}\nresource: {service_name: file}")
    otel = {"OTEL_METRIC_EXPORT_INTERVAL": "2000", "OTEL_SERVICE_NAME": "otel"}
    own = {"FABRICTAP_EXPORT__INTERVAL": "3s"}
    assert settings(file=file).export.interval == 1
    assert settings(file=file, environ=otel).export.interval == 2
    assert settings(file=file, environ=otel | own).export.interval == 3
    made = settings("export.interval=4s", file=file, environ=otel | own)
    assert (made.export.interval, made.export.otlp.queue, made.resource.service_name) == (4, 7, "otel")


def test_sections_of_the_file_and_of_the_environment_are_merged(yaml_file):
    file = yaml_file("resource: {attributes: {a: '1', b: '2'}}")
    made = settings(file=file, environ={"OTEL_RESOURCE_ATTRIBUTES": "b=3,c=4"})
    assert made.resource.attributes == {"a": "1", "b": "3", "c": "4"}


def test_text_becomes_the_type_of_the_key():
    made = settings(
        "sources.verbs.enabled=false",
        "limits.series=5",
        "sources.verbs.event_buffer=2MiB",
        "devices.allow=mlx5_*, rxe0",
        "resource.attributes=a=1,b=x%20y",
        "export.file.path=/tmp/x",
        "export.file.max_size=5KiB",
        "export.otlp.metrics.certificate=none",
        "sources.verbs.data=off",
    )
    assert made.sources.verbs.enabled is False
    assert (made.limits.series, made.sources.verbs.event_buffer) == (5, 2 << 20)
    assert made.devices.allow == ["mlx5_*", "rxe0"]
    assert made.resource.attributes == {"a": "1", "b": "x y"}
    assert (made.export.file.path, made.export.file.max_size) == ("/tmp/x", 5 << 10)
    assert made.export.otlp.metrics.certificate is None
    assert made.sources.verbs.data == "off"


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("export.intervall=1s", r"unknown key export.intervall; did you mean export.interval\?"),
        ("exprot.interval=1s", r"unknown key exprot; did you mean export\?"),
        ("zzz=1", "unknown key zzz; the top level has: agent, devices"),
        ("limits.qqq=1", "unknown key limits.qqq; limits has: "),
        ("export.interval=10", "export.interval: expected a duration as in 500ms, 10s, 5m or 1h, got '10'"),
        ("export.interval=-1s", "export.interval: expected a duration"),
        ("export.interval=48h", "export.interval: expected between 0.1s and 1d, got 172800s"),
        ("flows.window=1ms", "flows.window: expected between 1.0s and 1d"),
        ("export.file.max_size=64MB", "export.file.max_size: expected a size as in 512KiB or 64MiB"),
        ("sources.verbs.event_buffer=5000B", "expected a power of two from 4KiB to 1GiB, got 5000 bytes"),
        (
            "sources.verbs.completions.window=20s",
            "window from 50ms to half of every, .* got window 20s and every 30s",
        ),
        ("sources.verbs.completions.window=0s", "window from 50ms to half of every"),
        ("sources.verbs.completions.every=2d", "every up to 1d"),
        (
            "sources.verbs.completions.cost=0",
            "completions.cost: expected a share from 0 to 1, as 0.001, got 0",
        ),
        ("sources.verbs.completions.cost=nan", "expected a share"),
        ("limits.series=many", "limits.series: expected `int`, got `str`, got 'many'"),
        ("limits.series=0", "limits.series: expected between 1 and"),
        ("export.otlp.queue=0", "export.otlp.queue: expected at least 1, got 0"),
        ("export.file.max_files=0", "max_files must be at least 1"),
        ("sources.verbs.control=fexti", r"one of auto, fexit, .*, got 'fexti'; did you mean fexit\?"),
        ("sources.verbs.enabled=maybe", "sources.verbs.enabled: expected `bool`"),
        ("resource.attributes=a", "resource.attributes: expected key=value,key=value: 'a' has no key=value"),
        ("export=1", "export: expected a section with interval, otlp, file"),
        ("export.interval.x=1", "export.interval: expected a duration as in 10s"),
        ("nonsense", "expected section.key=value, as in --set export.interval=5s"),
        ("=1", "expected section.key=value"),
    ],
)
def test_a_mistake_is_named_with_its_key_its_place_and_what_would_be_right(pair, says):
    message = error(pair)
    assert re.search(says, message), message


def test_a_mistake_names_where_it_came_from(yaml_file):
    file = yaml_file("export: {intervall: 1s}")
    assert error(file=file).startswith(f"{file}: unknown key export.intervall")
    assert error(environ={"FABRICTAP_LIMITS__SERIES": "x"}).startswith(
        "FABRICTAP_LIMITS__SERIES: limits.series:"
    )
    assert error("limits.series=x").startswith("--set limits.series=x: limits.series:")


def test_variables_of_others_that_begin_with_our_name_are_left_alone():
    kubernetes = {"FABRICTAP_SERVICE_HOST": "10.0.0.1", "FABRICTAP_PORT": "tcp://10.0.0.1:4317"}
    assert settings(environ=kubernetes | {"FABRICTAP_CACHE": "/x"}) == config.Config()
    assert "unknown key limit; did you mean limits?" in error(environ={"FABRICTAP_LIMIT__SERIES": "5"})


def test_a_value_where_a_section_is_meant(yaml_file):
    file = yaml_file("export: 5\nlimits: 6")
    assert error(file=file) == f"{file}: export: expected a section, got 5"
    file = yaml_file("limits: 6")
    assert error("limits.series=1", file=file) == "--set limits.series=1: limits is a value, not a section"
    assert error(file=file).startswith(f"{file}: limits: expected a section with series, ")


def test_an_empty_section_of_the_file_can_be_filled(yaml_file):
    assert settings("limits.series=5", file=yaml_file("limits:\n")).limits.series == 5


def test_a_bare_off_in_the_file_is_a_word_where_one_is_meant(yaml_file):
    made = settings(file=yaml_file("sources: {verbs: {data: off, control: off, enabled: off}}")).sources.verbs
    assert (made.data, made.control, made.enabled) == ("off", "off", False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("export:\n  interval: 10\n", "a duration needs a unit, as in 10s, got 10"),
        ("export: {interval: yes}", "expected a duration as in 10s, got True"),
        ("export: {file: {max_size: 64}}", "a size needs a unit, as in 64MiB, got 64"),
        ("limits: {series: '5'}", "limits.series: expected `int`, got `str`"),
        ("sources: {verbs: {enabled: 1}}", "sources.verbs.enabled: expected `bool`"),
        ("devices: {allow: mlx5_0}", "devices.allow: expected `array`"),
        ("- a\n- b\n", "expected sections such as 'export:', got a list"),
        ("export: [", "line 1, column 10 not YAML"),
        ("export: {\n", "not YAML"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_file_is_read_strictly(yaml_file, text, says):
    file = yaml_file(text)
    message = error(file=file)
    assert says in message
    assert message.startswith(file)


@pytest.mark.parametrize("text", ["", "# nothing\n", "export:\n", "export:\n  otlp:\n"])
def test_an_empty_file_or_section_is_the_default(yaml_file, text):
    assert settings(file=yaml_file(text)) == config.Config()


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    assert error(file=str(tmp_path / "none")) == f"{tmp_path}/none: cannot be read: No such file or directory"
    assert "cannot be read: Is a directory" in error(file=str(tmp_path))


def test_durations_and_sizes():
    texts = {"1ms": 0.001, "10s": 10, "1.5m": 90, "2h": 7200, "1d": 86400, " 5 s ": 5}
    assert {text: parse_duration(text) for text in texts} == texts
    assert [parse_size(text) for text in ("1B", "2KiB", "3MiB", "4 GiB")] == [1, 2 << 10, 3 << 20, 4 << 30]


# --- OTEL_* ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("ENDPOINT", "http://collector:4317", "endpoint", "http://collector:4317"),
        ("HEADERS", "a=1,B=x%20y", "headers", {"a": "1", "B": "x y"}),
        ("TIMEOUT", "2500", "timeout", 2.5),
        ("COMPRESSION", "none", "compression", "none"),
        ("COMPRESSION", "gzip", "compression", "gzip"),
        ("INSECURE", "TRUE", "insecure", True),
        ("INSECURE", "false", "insecure", False),
        ("CERTIFICATE", "/ca.pem", "certificate", "/ca.pem"),
        ("CLIENT_KEY", "/key.pem", "client_key", "/key.pem"),
        ("CLIENT_CERTIFICATE", "/cert.pem", "client_certificate", "/cert.pem"),
    ],
)
def test_otlp_variables_go_to_both_signals_or_to_one(name, text, field, value):
    both = settings(environ={f"OTEL_EXPORTER_OTLP_{name}": text}).export.otlp
    assert (getattr(both.metrics, field), getattr(both.traces, field)) == (value, value)
    default = getattr(config.Signal(), field)
    one = settings(environ={f"OTEL_EXPORTER_OTLP_TRACES_{name}": text}).export.otlp
    assert (getattr(one.metrics, field), getattr(one.traces, field)) == (default, value)


def test_a_signals_own_variable_wins():
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://metrics:1",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "b=2",
    }
    otlp = settings(environ=environ).export.otlp
    assert (otlp.metrics.endpoint, otlp.traces.endpoint) == ("http://metrics:1", "http://all:1")
    assert (otlp.metrics.headers, otlp.traces.headers) == ({"b": "2"}, {"a": "1"})


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_counts_as_unset(value):
    names = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_SERVICE_NAME",
        "OTEL_METRIC_EXPORT_INTERVAL",
        "OTEL_SDK_DISABLED",
    )
    assert settings(environ=dict.fromkeys(names, value)) == config.Config()


def test_service_name_wins_over_the_resource_attribute():
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=attribute,k8s.node.name=n%2C1"}
    made = settings(environ=environ).resource
    assert (made.service_name, made.attributes) == ("attribute", {"k8s.node.name": "n,1"})
    assert settings(environ=environ | {"OTEL_SERVICE_NAME": "name"}).resource.service_name == "name"


@pytest.mark.parametrize(
    ("environ", "enabled"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, (False, False)),
        ({"OTEL_SDK_DISABLED": "false"}, (True, True)),
        ({"OTEL_TRACES_EXPORTER": "none"}, (True, False)),
        ({"OTEL_METRICS_EXPORTER": "none"}, (False, True)),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, (True, True)),
    ],
)
def test_signals_are_switched_off(environ, enabled):
    otlp = settings(environ=environ).export.otlp
    assert (otlp.metrics.enabled, otlp.traces.enabled) == enabled


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "expected milliseconds as a whole number, got '10s'"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1", "expected milliseconds"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "zstd", "expected gzip or none, got 'zstd'"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "1", "expected true or false, got '1'"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "novalue", "expected key=value,key=value"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=x", "expected key=value,key=value"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "fabrictap speaks grpc only"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "expected otlp or none"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(name, text, says):
    message = error(environ={name: text})
    assert message.startswith(f"{name}: ")
    assert says in message


def test_grpc_is_accepted_as_the_protocol():
    assert settings(environ={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) == config.Config()
