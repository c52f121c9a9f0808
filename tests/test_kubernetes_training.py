"""The Kubernetes recipe of a training by several machines: schemas, and what they cannot see."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
from manifests import Documents, container, follow_schemas, pod, read_documents

from kbert.cluster import TRY_AGAIN, cluster_of
from kbert.config import parse

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "kubernetes"
DOCUMENTS = read_documents(FOLDER)
NAME = "kbert-training"
JOB, SERVICE, POLICY = ("Job", NAME), ("Service", NAME), ("NetworkPolicy", NAME)


def tf_config(documents: Documents, index: int) -> str:
    """As Kubernetes resolves it: $(NAME) is only replaced when NAME stands above."""
    known: dict[str, str] = {}
    for entry in container(documents, JOB)["env"]:
        value = entry.get("value", "")
        for name, found in known.items():
            value = value.replace(f"$({name})", found)
        known[entry["name"]] = str(index) if entry["name"] == "JOB_COMPLETION_INDEX" else value
    return known["TF_CONFIG"]


def have_a_place_in_the_cluster(documents: Documents) -> None:
    job, service = documents[JOB]["spec"], documents[SERVICE]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert pod(documents, JOB)["spec"]["subdomain"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    for index in range(job["completions"]):
        cluster = cluster_of({"TF_CONFIG": tf_config(documents, index)})
        assert len(cluster.addresses) == job["completions"]
        assert cluster.index == index
        host = f"{documents[JOB]['metadata']['name']}-{index}.{service['metadata']['name']}"
        assert cluster.addresses[index] == f"{host}:{port['port']}"


def find_each_other(documents: Documents) -> None:
    service, policy = documents[SERVICE]["spec"], documents[POLICY]["spec"]
    labels = pod(documents, JOB)["metadata"]["labels"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True  # they wait for each other before they are
    (ingress,) = policy["ingress"]
    (source,) = ingress["from"]
    assert service["selector"] == policy["podSelector"]["matchLabels"] == labels
    assert source == {"podSelector": {"matchLabels": labels}}
    (port,), (allowed,) = service["ports"], ingress["ports"]
    (own,) = container(documents, JOB)["ports"]
    assert {port["port"], port["targetPort"], allowed["port"], own["containerPort"]} == {2222}
    others = [key for key in documents if key[0] in ("Job", "Pod") and key != JOB]
    assert all(pod(documents, key)["metadata"]["labels"] != labels for key in others)


def start_again(documents: Documents) -> None:
    job, spec = documents[JOB]["spec"], pod(documents, JOB)["spec"]
    assert (spec["restartPolicy"], job["podReplacementPolicy"]) == ("Never", "Failed")
    assert spec["terminationGracePeriodSeconds"] >= 30
    assert job["backoffLimit"] > 0
    disrupted, stopped, bad_input = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == stopped["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"] == {"operator": "In", "values": [TRY_AGAIN, 130, 143]}
    assert bad_input == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}


def are_as_those_of_a_search(documents: Documents) -> None:
    """Image, rights, volumes and further variables, which tests/test_kubernetes.py looks at."""
    search = ("Job", "kbert-search-workers")
    ours, theirs = container(documents, JOB), container(documents, search)
    for name in ("image", "args", "resources", "securityContext", "volumeMounts"):
        assert ours[name] == theirs[name], name
    own = {"TF_CONFIG", "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"}
    environments = [[of for of in one["env"] if of["name"] not in own] for one in (ours, theirs)]
    assert environments[0] == environments[1]
    pods = [dict(pod(documents, key)["spec"]) for key in (JOB, search)]
    for spec in pods:
        spec.pop("subdomain", None)
        del spec["containers"]
        spec["volumes"] = [of for of in spec["volumes"] if "configMap" not in of]
    assert pods[0] == pods[1]


CHECKS: list[Callable[[Documents], None]] = [
    follow_schemas, have_a_place_in_the_cluster, find_each_other, start_again,
    are_as_those_of_a_search,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_documents(check: Callable[[Documents], None]) -> None:
    check(DOCUMENTS)


def test_options(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(DOCUMENTS["ConfigMap", NAME]["data"]["options.yaml"], encoding="utf-8")
    config = parse(["--config", str(file)])
    assert config.train.strategy == "multi_worker"
    assert config.train.batch_size >= documents_count(DOCUMENTS)
    assert DOCUMENTS["ConfigMap", NAME]["immutable"] is True
    assert config.output.startswith("/runs/")
    assert config.data.train.startswith("/data/")


def documents_count(documents: Documents) -> int:
    return documents[JOB]["spec"]["completions"]


def break_number(documents: Documents) -> None:
    documents[JOB]["spec"] |= {"completions": 5, "parallelism": 5}


def break_list(documents: Documents) -> None:
    entry = container(documents, JOB)["env"][1]
    entry["value"] = entry["value"].replace("kbert-training-3.", "kbert-training-4.")


def break_order(documents: Documents) -> None:
    """What Kubernetes makes of a template that leaves the index to it: it comes last."""
    entries = container(documents, JOB)["env"]
    entries.append(entries.pop(0))


def break_subdomain(documents: Documents) -> None:
    pod(documents, JOB)["spec"]["subdomain"] = "training"


def break_policy(documents: Documents) -> None:
    documents[POLICY]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].popitem()


def break_statuses(documents: Documents) -> None:
    documents[JOB]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] = [130, 143]


def break_schema(documents: Documents) -> None:
    documents[JOB]["spec"]["completions"] = "4"


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (break_number, have_a_place_in_the_cluster),
        (break_list, have_a_place_in_the_cluster),
        (break_order, have_a_place_in_the_cluster),
        (break_subdomain, have_a_place_in_the_cluster),
        (break_policy, find_each_other),
        (break_statuses, start_again),
        (break_schema, follow_schemas),
    ],
    ids=lambda function: function.__name__,
)
def test_broken_documents_fail(
    damage: Callable[[Documents], None], check: Callable[[Documents], None]
) -> None:
    documents = copy.deepcopy(DOCUMENTS)
    damage(documents)
    with pytest.raises((AssertionError, ValueError, kubernetes_validate.ValidationError)):
        check(documents)


def test_the_list_is_readable() -> None:
    """One address a line: a longer list is a line a pod."""
    text = (FOLDER / "training.yaml").read_text(encoding="utf-8")
    assert len(re.findall(r"^ +\"kbert-training-\d+\.kbert-training:2222\",?$", text, re.M)) == 4
    json.loads(tf_config(DOCUMENTS, 0))
