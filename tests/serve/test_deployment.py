"""What is handed to the real TensorFlow Serving: configuration, compose, monitoring, Kubernetes."""

import copy
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from manifests import Documents, container, follow_schemas, pod, read_documents

from serve.metrics import Counter, Histogram, Metrics
from serve.text_protos import (
    BatchingParameters,
    ModelServerConfig,
    MonitoringConfig,
    SSLConfig,
    read_text_proto,
)

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / "serve"
DOCUMENT = ROOT / "docs" / "serving.md"

# Those of tensorflow_model_server 2.20 that are named here or in the document.
FLAGS = {
    "allow_version_labels_for_unavailable_models",
    "batching_parameters_file",
    "enable_batching",
    "enable_grpc_healthcheck_service",
    "file_system_poll_wait_seconds",
    "grpc_max_threads",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "monitoring_config_file",
    "rest_api_num_threads",
    "rest_api_timeout_in_ms",
    "ssl_config_file",
    "tensorflow_inter_op_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_session_parallelism",
}


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def interpolated(value: str) -> str:
    """As compose does it, with no variable set: ${NAME:-default}, and $$ for a dollar."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value).replace("$$", "$")


COMPOSE = load(SERVE / "docker-compose.yml")
SERVING = COMPOSE["services"]["serving"]
COMMAND = [interpolated(argument) for argument in SERVING["command"]]
CHECK = SERVING["healthcheck"]["test"][3].replace("$$", "$")
BATCHING = read_text_proto(SERVE / "batching.config", BatchingParameters)
MONITORING = read_text_proto(SERVE / "monitoring.config", MonitoringConfig)


def flags_of(arguments: list[str]) -> dict[str, str]:
    pairs = [argument.removeprefix("--").split("=", 1) for argument in arguments]
    assert all(argument.startswith("--") for argument in arguments)
    assert len(dict(pairs)) == len(pairs), "a flag is there twice"
    return dict(pairs)


# --- the files of the server -----------------------------------------------------------------


def test_batching_parameters():
    rows = BATCHING.max_execution_batch_size.value
    assert BATCHING.enable_large_batch_splitting.value
    assert 1 < rows <= BATCHING.max_batch_size.value
    # a request as large as is taken must fit the queue, or it could never be served
    assert BATCHING.max_enqueued_batches.value * rows > BATCHING.max_batch_size.value
    assert BATCHING.batch_timeout_micros.value < 100_000
    assert not BATCHING.pad_variable_length_inputs
    sizes = list(BATCHING.allowed_batch_sizes)
    assert not sizes or (sizes == sorted(set(sizes)) and sizes[-1] == rows)


def test_batching_parameters_proposed_for_gpus(tmp_path: Path):
    """The sizes in the comment are taken as they stand."""
    text = (SERVE / "batching.config").read_text(encoding="utf-8")
    proposed = tmp_path / "batching.config"
    proposed.write_text(text.replace("#   allowed_batch_sizes", "allowed_batch_sizes"))
    sizes = list(read_text_proto(proposed, BatchingParameters).allowed_batch_sizes)
    assert sizes == sorted(set(sizes)) and len(sizes) > 2
    assert sizes[-1] == BATCHING.max_execution_batch_size.value


def test_monitoring():
    assert MONITORING.prometheus_config.enable
    path = MONITORING.prometheus_config.path
    (job,) = load(SERVE / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert path == job["metrics_path"] == "/monitoring/prometheus/metrics"


def test_tls_example_holds_no_key():
    path = SERVE / "ssl.config.example"
    example = read_text_proto(path, SSLConfig)
    assert not example.client_verify
    for text in (example.server_key, example.server_cert, example.custom_ca):
        first, inside, last = text.splitlines()
        assert re.fullmatch("-----BEGIN [A-Z ]+-----", first)
        assert last == first.replace("BEGIN", "END")
        assert inside.startswith("the lines of")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_tls_commands_make_the_file(tmp_path: Path):
    """The commands in the example's comment, as they are typed."""
    text = (SERVE / "ssl.config.example").read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^#   (.*)$", text)
    subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=tmp_path, check=True, capture_output=True)
    made = read_text_proto(tmp_path / "ssl.config", SSLConfig)
    assert made.server_key == (tmp_path / "server.key").read_text()
    assert made.server_cert == (tmp_path / "server.crt").read_text()
    assert "PRIVATE KEY" in made.server_key and "CERTIFICATE" in made.server_cert
    assert (tmp_path / "ssl.config").stat().st_mode & 0o077 == 0


# --- docker compose ----------------------------------------------------------------------------


def test_images_are_pinned():
    images = {name: interpolated(service["image"]) for name, service in COMPOSE["services"].items()}
    assert images["serving"] == "tensorflow/serving:2.20.0"
    for image in images.values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", image), image


def test_ports_are_on_this_machine_only():
    ports = [port for service in COMPOSE["services"].values() for port in service["ports"]]
    assert len(ports) == 4
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


def test_only_serving_starts_without_the_profile():
    alone = [name for name, service in COMPOSE["services"].items() if "profiles" not in service]
    assert alone == ["serving"]


def test_server_is_told_of_files_that_are_mounted():
    flags = flags_of(COMMAND)
    assert set(flags) <= FLAGS
    export, *files = SERVING["volumes"]
    assert export["source"].startswith("${EXPORT:?") and export["read_only"]
    mounted = {}
    for volume in files:
        source, target, mode = volume.split(":")
        assert mode == "ro" and (SERVE / source).is_file()
        mounted[target] = source
    assert flags["model_config_file"] == f"{export['target']}/models.config"
    assert mounted == {
        flags["batching_parameters_file"]: "./batching.config",
        flags["monitoring_config_file"]: "./monitoring.config",
    }


def test_batches_can_fill():
    flags = flags_of(COMMAND)
    # those that run, and as many that gather, in requests of one row
    needed = 2 * BATCHING.num_batch_threads.value * BATCHING.max_execution_batch_size.value
    assert int(flags["rest_api_num_threads"]) >= needed
    assert int(flags["grpc_max_threads"]) >= needed
    cpus = interpolated(SERVING["cpus"])
    assert cpus == str(BATCHING.num_batch_threads.value)
    assert flags["tensorflow_intra_op_parallelism"] == cpus
    assert flags["tensorflow_inter_op_parallelism"] == cpus


def test_compose_file_is_valid():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", SERVE / "docker-compose.yml", "config", "--quiet"]
    good = subprocess.run(command, env={"EXPORT": "/tmp"}, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    bad = subprocess.run(command, env={}, capture_output=True, text=True)
    assert "the folder export of a run" in bad.stderr


# --- the health check --------------------------------------------------------------------------


def health(port: int, *words: str) -> int:
    """The exit status of the check's very text, but for the port."""
    text = CHECK.replace("/8501", f"/{port}")
    assert text != CHECK
    command = ["bash", "-c", text, "check", *words]
    return subprocess.run(command, capture_output=True, timeout=20).returncode


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def answer_with() -> Iterator[Callable[[str], int]]:
    """Gives the port of a server that sends this text to all that ask, whatever they ask."""
    listeners = []

    def listen(text: str) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    request = b""
                    while not request.endswith(b"\r\n\r\n"):  # bash sends line by line
                        request += connection.recv(4096)
                    connection.sendall(text.encode())

        threading.Thread(target=serve, daemon=True).start()
        return listener.getsockname()[1]

    yield listen
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def status_page(*states: str, status: str = "200 OK") -> str:
    """As TensorFlow Serving writes it."""
    versions = [
        {
            "version": str(number),
            "state": state,
            "status": {"error_code": "OK", "error_message": ""},
        }
        for number, state in enumerate(states, start=1)
    ]
    body = json.dumps({"model_version_status": versions}, indent=1)
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\r\n{body}"


@pytest.mark.parametrize(
    ("page", "healthy", "loaded"),
    [
        (status_page("AVAILABLE"), 0, 0),
        (status_page("AVAILABLE") + "\n", 0, 0),
        (status_page("LOADING", "AVAILABLE"), 0, 1),
        (status_page("START", "AVAILABLE"), 0, 1),
        (status_page("AVAILABLE", "END"), 0, 0),
        (status_page("UNLOADING", "AVAILABLE"), 0, 0),
        (status_page("END"), 1, 1),
        (status_page("LOADING"), 1, 1),
        (status_page("AVAILABLE", status="503 Service Unavailable"), 1, 1),
        (status_page("AVAILABLE").replace('"state"', '"error_message"'), 1, 1),
        ('HTTP/1.1 404 Not Found\r\n\r\n{ "error": "no AVAILABLE" }', 1, 1),
        ("", 1, 1),
    ],
)
def test_health_of_answers(page: str, healthy: int, loaded: int, answer_with: Callable[[str], int]):
    port = answer_with(page)
    assert health(port, "news") == healthy
    assert health(port, "news", "loaded") == loaded


def test_health_when_nothing_listens():
    assert health(free_port(), "news") == 1


def test_health_of_the_local_server(rest_address: str):
    port = int(rest_address.split(":")[1])
    assert health(port, "half") == 0
    assert health(port, "half", "loaded") == 0
    assert health(port, "other") == 1


# --- Prometheus and Grafana --------------------------------------------------------------------

ALERTS = load(SERVE / "prometheus" / "alerts.yml")["groups"]
BOARD = json.loads((SERVE / "grafana/dashboards/serving.json").read_text(encoding="utf-8"))
RULES = {rule["alert"]: rule for group in ALERTS for rule in group["rules"]}
TARGETS = [(panel["title"], target) for panel in BOARD["panels"] for target in panel["targets"]]
OF_PROMETHEUS = {"job", "instance"}
"""Labels that it adds to all it reads."""


def labels_on_the_page() -> dict[str, set[str]]:
    """Each name on the page of figures, and the labels it has there."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if isinstance(metric, Counter):
            metric.add(*("x" for _ in metric.labels))
        elif isinstance(metric, Histogram):
            metric.observe(1.0, *("x" for _ in metric.labels))
    # not by prometheus_client's parser, which lets all counters end in _total
    lines = re.findall(r"(?m)^([\w:]+)\{(.*)\} ", metrics.page())
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in lines}


PAGE = labels_on_the_page()


def check_expression(expression: str) -> set[str]:
    """Looks for names and labels the page has not; gives the names."""
    found = re.findall(r"(?<![\w\"])(:[\w:]+)(?:\{([^}]*)\})?", expression)
    names = {name for name, _ in found}
    assert names <= set(PAGE), names - set(PAGE)
    for name, matchers in found:
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert used <= PAGE[name] | OF_PROMETHEUS, (name, used)
    grouped: set[str] = set()
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        grouped |= {label.strip() for label in labels.split(",")}
    common = set.intersection(*(PAGE[name] for name in names)) if names else set()
    assert grouped <= common | OF_PROMETHEUS, grouped
    if "histogram_quantile" in expression:
        assert "le" in grouped and all(name.endswith("_bucket") for name in names)
    return names


def test_page_is_as_tensorflow_serving_writes_it():
    """So that the tests below compare with the real names."""
    assert PAGE[":tensorflow:serving:request_count"] == {"model_name", "status"}
    assert PAGE[":tensorflow:serving:request_latency_bucket"] == {
        "model_name",
        "API",
        "entrypoint",
        "le",
    }


@pytest.mark.parametrize(("title", "target"), TARGETS)
def test_board_asks_for_what_is_there(title: str, target: dict):
    names = check_expression(target["expr"])
    assert names
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    for name in names:
        assert shown <= PAGE[name], title
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", target["expr"])
    for labels in grouped:  # a label that is summed over cannot be shown
        assert shown <= {label.strip() for label in labels.split(",")}, title
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
    assert "job" in used and used <= variables


def test_board_shows_all():
    shown = set().union(*(check_expression(target["expr"]) for _, target in TARGETS))
    families = {re.sub("_(bucket|sum)$|(?<!request)_count$", "", name) for name in shown}
    assert {family.rsplit(":", 1)[1] for family in families} == {
        "request_count",
        "request_latency",
        "runtime_latency",
        "request_example_counts",
        "request_example_count_total",
        "input_batch_size",
        "processed_batch_size",
        "queuing_latency",
        "padding_size",
        "model_warmup_latency",
    }
    for variable in BOARD["templating"]["list"]:
        inside = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert inside
        (name,) = check_expression(inside[1])
        assert inside[2] in PAGE[name] | OF_PROMETHEUS


def test_board_is_laid_out():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_grafana_finds_board_and_prometheus():
    grafana = COMPOSE["services"]["grafana"]
    mounted = {}
    for volume in grafana["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        mounted[target] = (SERVE / source).resolve()
    provisioning = mounted["/etc/grafana/provisioning"]
    (provider,) = load(provisioning / "dashboards" / "serving.yml")["providers"]
    assert (mounted[provider["options"]["path"]] / "serving.json").is_file()
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/serving.json"
    (source,) = load(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    users = [*BOARD["panels"], *BOARD["templating"]["list"], *(target for _, target in TARGETS)]
    assert {user["datasource"]["uid"] for user in users} == {source["uid"]}


def test_prometheus_finds_the_server():
    config = load(SERVE / "prometheus" / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["serving:8501"]}]
    assert "serving" in COMPOSE["services"]
    for name in config["rule_files"]:
        assert (SERVE / "prometheus" / name).is_file()
    assert all(f'job="{job["job_name"]}"' in RULES[name]["expr"] for name in ("ServingDown",))


@pytest.mark.parametrize("name", RULES)
def test_alerts_ask_for_what_is_there(name: str):
    rule = RULES[name]
    check_expression(rule["expr"])
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", rule["expr"])
    for labels in grouped:
        assert shown <= {label.strip() for label in labels.split(",")}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}


STATUSES = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}


def test_alerts_know_the_statuses():
    for rule in RULES.values():
        for text in re.findall(r'status(?:=~|!=|=)"([^"]*)"', rule["expr"]):
            assert set(text.split("|")) <= STATUSES


@pytest.mark.parametrize(
    "expression",
    [
        "rate(:tensorflow:serving:requests[5m])",
        'rate(:tensorflow:serving:request_count{model="x"}[5m])',
        "sum by (entrypoint) (rate(:tensorflow:serving:request_count[5m]))",
        "histogram_quantile(0.5, sum by (API) (:tensorflow:serving:request_latency_bucket))",
        "histogram_quantile(0.5, sum by (le) (:tensorflow:serving:request_latency_sum))",
    ],
)
def test_wrong_expressions_are_found(expression: str):
    with pytest.raises(AssertionError):
        check_expression(expression)


PROMTOOL = shutil.which("promtool") or ""
PREFIX = ":tensorflow:serving:"
IDENTITY = 'job="serving", instance="a:8501"'


def alerts_after(minutes: int, series: dict[str, str], expected: dict[str, list[dict]]) -> dict:
    """A test in promtool's form: these series, and who is warned of then."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": expected.get(name, [])}
            for name in RULES
        ],
    }


def alert(name: str, summary: str, **labels: str) -> dict[str, list[dict]]:
    labels |= {"severity": RULES[name]["labels"]["severity"], "job": "serving"}
    return {name: [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]}


def count(status: str) -> str:
    return f'{PREFIX}request_count{{{IDENTITY}, model_name="news", status="{status}"}}'


def warmup(status: str, version: int) -> str:
    labels = f'{IDENTITY}, model_path="/models/news/{version}", status="{status}"'
    return f"{PREFIX}model_warmup_latency_count{{{labels}}}"


UP = f"up{{{IDENTITY}}}"
BUSY = {UP: "1+0x60", count("OK"): "0+600x60"}
QUEUE = f"{PREFIX}batching_session:queuing_latency_bucket{{{IDENTITY}, thread_pool_name="
LATENCY = (
    f'{PREFIX}request_latency_bucket{{{IDENTITY}, model_name="news", API="predict", '
    'entrypoint="REST", le='
)


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")
def test_prometheus_files_are_valid():
    config = SERVE / "prometheus" / "prometheus.yml"
    checked = subprocess.run([PROMTOOL, "check", "config", config], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")
def test_alerts_warn_when_they_should(tmp_path: Path):
    where = {"instance": "a:8501"}
    cases = [
        alerts_after(50, BUSY, {}),
        alerts_after(
            50,
            BUSY | {UP: "1+0x40 0+0x20"},
            alert("ServingDown", "a:8501 does not answer Prometheus", **where),
        ),
        alerts_after(
            50,
            BUSY | {count("UNAVAILABLE"): "0+150x60"},
            alert("ServingErrors", "news: 20% of the requests fail", model_name="news"),
        ),
        alerts_after(
            50,
            BUSY | {count("NOT_FOUND"): "0+150x60"},
            alert(
                "ServingRefusesRequests",
                "news: 20% of the requests are refused as wrong",
                model_name="news",
            ),
        ),
        alerts_after(
            50,
            BUSY
            | {LATENCY + '"100000"}': "0+50x60", LATENCY + '"1000000"}': "0+100x60"}
            | {LATENCY + '"+Inf"}': "0+100x60"},
            alert(
                "ServingSlow",
                "news, REST: the slowest of 100 requests take over 982k us",
                model_name="news",
                entrypoint="REST",
            ),
        ),
        alerts_after(
            50,
            BUSY
            | {QUEUE + '"batch_threads", le="10000"}': "0+0x60"}
            | {QUEUE + '"batch_threads", le="110000"}': "0+100x60"}
            | {QUEUE + '"batch_threads", le="+Inf"}': "0+100x60"},
            alert("ServingQueues", "a:8501: rows wait over 105k us for their batch", **where),
        ),
        # requests that have stopped, and none since the start
        alerts_after(
            55,
            BUSY | {count("OK"): "0+600x20 12000+0x40"},
            alert("ServingIdle", "no request has reached the server for a quarter of an hour"),
        ),
        alerts_after(
            20,
            {UP: "1+0x60"},
            alert("ServingIdle", "no request has reached the server for a quarter of an hour"),
        ),
        # a version that fails; one that failed, and was loaded at another try
        alerts_after(
            50,
            BUSY
            | {warmup("OK", 1): "1+0x60", warmup("INVALID_ARGUMENT", 2): "_x20 1+0x40"}
            | {warmup("UNAVAILABLE", 3): "1+0x60", warmup("OK", 3): "_x10 1+0x50"},
            alert(
                "ServingWarmUpFailed",
                "a:8501: warm-up of /models/news/2 failed, so that this version is not served",
                model_path="/models/news/2",
                status="INVALID_ARGUMENT",
                **where,
            ),
        ),
    ]
    assert all(
        any(case["alert_rule_test"][index]["exp_alerts"] for case in cases)
        for index in range(len(RULES))
    )
    shutil.copy(SERVE / "prometheus" / "alerts.yml", tmp_path)
    document = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    run = subprocess.run(
        [PROMTOOL, "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


# --- Kubernetes --------------------------------------------------------------------------------

OPTIONS = ("ConfigMap", "news")
SERVER = ("Deployment", "news")
FILES = ("Pod", "news-files")
SERVICE = ("Service", "news")
BUDGET = ("PodDisruptionBudget", "news")
SCALER = ("HorizontalPodAutoscaler", "news")
POLICY = ("NetworkPolicy", "news")
CLAIM = ("PersistentVolumeClaim", "news-models")


DOCUMENTS = read_documents(SERVE / "kubernetes")


def embed_the_files(documents: Documents) -> None:
    data = documents[OPTIONS]["data"]
    assert set(data) == {"models.config", "batching.config", "monitoring.config"}
    for name in ("batching.config", "monitoring.config"):
        assert data[name] == (SERVE / name).read_text(encoding="utf-8"), name


def serve_what_has_labels(documents: Documents, folder: Path) -> None:
    for name, kind in (
        ("models.config", ModelServerConfig),
        ("batching.config", BatchingParameters),
        ("monitoring.config", MonitoringConfig),
    ):
        path = folder / name
        path.write_text(documents[OPTIONS]["data"][name], encoding="utf-8")
        read_text_proto(path, kind)
    (model,) = read_text_proto(folder / "models.config", ModelServerConfig).model_config_list.config
    assert (model.name, model.model_platform) == ("news", "tensorflow")
    assert model.base_path == "/models/news"
    assert model.model_version_policy.latest.num_versions == 2
    assert set(model.version_labels) == {"stable", "canary"}


def run_as_compose_does(documents: Documents) -> None:
    server = container(documents, SERVER)
    assert server["image"] == interpolated(SERVING["image"])
    assert container(documents, FILES)["image"] == server["image"]
    flags, expected = flags_of(server["args"]), flags_of(COMMAND)
    assert set(flags) <= FLAGS
    assert flags.pop("file_system_poll_wait_seconds") == "10"
    expected["model_config_file"] = "/config/models.config"
    for name in ("tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"):
        expected[name] = "$(CPUS)"
    assert flags == expected
    environment = {entry["name"]: entry for entry in server["env"]}
    assert environment.pop("CPUS")["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    plain = {name: entry["value"] for name, entry in environment.items()}
    assert plain == SERVING["environment"]
    assert int(server["resources"]["limits"]["cpu"]) == BATCHING.num_batch_threads.value


def probe_the_model(documents: Documents) -> None:
    server = container(documents, SERVER)
    command = ["bash", "-c", CHECK, "check", "news"]
    assert server["readinessProbe"]["exec"]["command"] == command
    assert server["startupProbe"]["exec"]["command"] == [*command, "loaded"]
    for entry in command:  # or Kubernetes would put a variable there
        assert "$(" not in entry
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert server["livenessProbe"]["grpc"] == {"port": 8500}
    assert "--enable_grpc_healthcheck_service=true" in server["args"]
    assert all(server[f"{kind}Probe"]["timeoutSeconds"] >= 5 for kind in ("startup", "readiness"))


def meet_at_the_ports(documents: Documents) -> None:
    server = container(documents, SERVER)
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for port in documents[SERVICE]["spec"]["ports"]:
        assert port["port"] == ports[port["targetPort"]]
    clients, prometheus = documents[POLICY]["spec"]["ingress"]
    assert {port["port"] for port in clients["ports"]} == set(ports.values())
    assert [port["port"] for port in prometheus["ports"]] == [ports["rest"]]
    annotations = pod(documents, SERVER)["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["rest"])
    assert annotations["prometheus.io/path"] == MONITORING.prometheus_config.path


def select_what_is_labelled(documents: Documents) -> None:
    labels = {key: pod(documents, key)["metadata"]["labels"] for key in (SERVER, FILES)}

    def selected(selector: dict) -> list[tuple[str, str]]:
        return [key for key, own in labels.items() if selector.items() <= own.items()]

    spec = documents[SERVER]["spec"]
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    for selector in (
        documents[SERVICE]["spec"]["selector"],
        spec["selector"]["matchLabels"],
        documents[BUDGET]["spec"]["selector"]["matchLabels"],
        documents[POLICY]["spec"]["podSelector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
    ):
        assert selected(selector) == [SERVER]
    assert documents[POLICY]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert documents[POLICY]["spec"]["egress"] == []


def scale_the_deployment(documents: Documents) -> None:
    scaler = documents[SCALER]["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == SERVER
    assert target["apiVersion"] == documents[SERVER]["apiVersion"]
    # or each apply would set the number back
    assert "replicas" not in documents[SERVER]["spec"]
    assert scaler["minReplicas"] > documents[BUDGET]["spec"]["maxUnavailable"]
    # utilisation is a share of what is requested
    assert "cpu" in container(documents, SERVER)["resources"]["requests"]
    assert documents[SERVER]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def mount_what_is_declared(documents: Documents) -> None:
    for key in (SERVER, FILES):
        spec = pod(documents, key)["spec"]
        mounts = {mount["name"]: mount for mount in container(documents, key)["volumeMounts"]}
        assert sorted(mounts) == sorted(volume["name"] for volume in spec["volumes"])
        assert mounts["models"]["mountPath"] == "/models"
        for volume in spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) == CLAIM
                assert claim.get("readOnly", False) == (key == SERVER)
            elif options := volume.get("configMap"):
                assert ("ConfigMap", options["name"]) == OPTIONS
                # or it would not follow a change
                assert "subPath" not in mounts[volume["name"]]
    assert documents[CLAIM]["spec"]["accessModes"] == ["ReadWriteMany"]
    mounts = container(documents, SERVER)["volumeMounts"]
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in mounts} == {
        "/config": True,
        "/models": True,
        "/tmp": False,
    }


def stop_well(documents: Documents) -> None:
    """The proxies have ten seconds to learn of it, then the longest request can end."""
    server = container(documents, SERVER)
    command, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
    longest = int(flags_of(server["args"])["rest_api_timeout_in_ms"]) / 1000
    assert command == "sleep" and int(seconds) >= 10 + longest
    assert pod(documents, SERVER)["spec"]["terminationGracePeriodSeconds"] > int(seconds)


def have_no_rights(documents: Documents) -> None:
    """What the restricted Pod Security Standard asks for, and no more than a fixed share."""
    for key in (SERVER, FILES):
        spec, only = pod(documents, key)["spec"], container(documents, key)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        for bound in ("requests", "limits"):
            assert set(only["resources"][bound]) >= {"cpu", "memory"}


CHECKS: list[Callable[[Documents], None]] = [
    follow_schemas,
    embed_the_files,
    run_as_compose_does,
    probe_the_model,
    meet_at_the_ports,
    select_what_is_labelled,
    scale_the_deployment,
    mount_what_is_declared,
    stop_well,
    have_no_rights,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_documents(check: Callable[[Documents], None]):
    check(DOCUMENTS)


def test_embedded_files_are_read(tmp_path: Path):
    serve_what_has_labels(DOCUMENTS, tmp_path)


def break_schema_by_unknown_field(documents: Documents) -> None:
    container(documents, SERVER)["readynessProbe"] = {}


def break_schema_by_type(documents: Documents) -> None:
    documents[SCALER]["spec"]["maxReplicas"] = "6"


def break_batching(documents: Documents) -> None:
    documents[OPTIONS]["data"]["batching.config"] += "batch_timeout_micros { value: 0 }\n"


def break_flag(documents: Documents) -> None:
    container(documents, SERVER)["args"].remove("--enable_batching=true")


def break_cpus(documents: Documents) -> None:
    container(documents, SERVER)["resources"]["limits"]["cpu"] = "8"


def break_check(documents: Documents) -> None:
    command = container(documents, SERVER)["readinessProbe"]["exec"]["command"]
    command[2] = command[2].replace("AVAILABLE", "END")


def break_health_service(documents: Documents) -> None:
    container(documents, SERVER)["args"].remove("--enable_grpc_healthcheck_service=true")


def break_port(documents: Documents) -> None:
    documents[SERVICE]["spec"]["ports"][0]["port"] = 8501


def break_policy_port(documents: Documents) -> None:
    documents[POLICY]["spec"]["ingress"][1]["ports"][0]["port"] = 8500


def break_selector(documents: Documents) -> None:
    del documents[SERVICE]["spec"]["selector"]["app.kubernetes.io/component"]


def break_egress(documents: Documents) -> None:
    documents[POLICY]["spec"]["policyTypes"].remove("Egress")


def break_scaling(documents: Documents) -> None:
    documents[SERVER]["spec"]["replicas"] = 1


def break_claim(documents: Documents) -> None:
    pod(documents, FILES)["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "models"


def break_mount(documents: Documents) -> None:
    container(documents, SERVER)["volumeMounts"][0]["subPath"] = "models.config"


def break_stop(documents: Documents) -> None:
    pod(documents, SERVER)["spec"]["terminationGracePeriodSeconds"] = 20


def break_security(documents: Documents) -> None:
    container(documents, SERVER)["securityContext"]["readOnlyRootFilesystem"] = False


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (break_schema_by_unknown_field, follow_schemas),
        (break_schema_by_type, follow_schemas),
        (break_batching, embed_the_files),
        (break_flag, run_as_compose_does),
        (break_cpus, run_as_compose_does),
        (break_check, probe_the_model),
        (break_health_service, probe_the_model),
        (break_port, meet_at_the_ports),
        (break_policy_port, meet_at_the_ports),
        (break_selector, select_what_is_labelled),
        (break_egress, select_what_is_labelled),
        (break_scaling, scale_the_deployment),
        (break_claim, mount_what_is_declared),
        (break_mount, mount_what_is_declared),
        (break_stop, stop_well),
        (break_security, have_no_rights),
    ],
    ids=lambda function: function.__name__,
)
def test_broken_documents_fail(
    damage: Callable[[Documents], None], check: Callable[[Documents], None]
):
    documents = copy.deepcopy(DOCUMENTS)
    damage(documents)
    refused = kubernetes_validate.ValidationError if check is follow_schemas else AssertionError
    with pytest.raises(refused):
        check(documents)


# --- the document ------------------------------------------------------------------------------


def test_document_names_what_is_there():
    text = DOCUMENT.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) >= 3
    for link in links:
        assert (DOCUMENT.parent / link).exists(), link
    for name in re.findall(r"(?m)^\| (`[^|]*`) \|", text.split("## Versions")[0]):
        for path in re.findall("`([^`]+)`", name):
            assert (SERVE / path).exists(), path
    named = set(re.findall(r"--([a-z]+_\w+)", text))
    assert named <= FLAGS, named - FLAGS


def test_document_runs_the_same_image():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall(r"tensorflow/serving:([\w.-]+)", text)) == {"2.20.0"}
