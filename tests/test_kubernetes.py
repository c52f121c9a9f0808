"""The Kubernetes recipe: the API's own schemas, and what schemas cannot see."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import Documents, container, follow_schemas, pod, read_documents

from kbert.config import Config, parse

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "kubernetes"
CHIEF = ("Job", "kbert-search-chief")
WORKERS = ("Job", "kbert-search-workers")
SERVICE = ("Service", "kbert-oracle")
POLICY = ("NetworkPolicy", "kbert-oracle")
OPTIONS = ("ConfigMap", "kbert-search")
FILES = ("Pod", "kbert-files")


DOCUMENTS = read_documents(FOLDER)


def environment(documents: Documents, key: tuple[str, str]) -> dict[str, Any]:
    """Name to value, or to where the value comes from."""
    entries = container(documents, key)["env"]
    found = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
    assert len(found) == len(entries), "a variable is there twice"
    return found


def meet_at_one_port(documents: Documents) -> None:
    chief, workers = environment(documents, CHIEF), environment(documents, WORKERS)
    service = documents[SERVICE]["spec"]
    (service_port,) = service["ports"]
    (container_port,) = container(documents, CHIEF)["ports"]
    (ingress,) = documents[POLICY]["spec"]["ingress"]
    (allowed,) = ingress["ports"]
    # a headless service maps no ports: its port is the pod's
    assert service["clusterIP"] == "None"
    assert {
        int(chief["KERASTUNER_ORACLE_PORT"]),
        int(workers["KERASTUNER_ORACLE_PORT"]),
        service_port["port"],
        service_port["targetPort"],
        container_port["containerPort"],
        allowed["port"],
    } == {8000}
    assert chief["KERASTUNER_ORACLE_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert workers["KERASTUNER_ORACLE_IP"] == documents[SERVICE]["metadata"]["name"]


def have_names_of_their_own(documents: Documents) -> None:
    """As Kubernetes resolves it: $(NAME) is only replaced when NAME stands above."""
    assert environment(documents, CHIEF)["KERASTUNER_TUNER_ID"] == "chief"
    known: set[str] = set()
    for entry in container(documents, WORKERS)["env"]:
        used = set(re.findall(r"\$\((\w+)\)", entry.get("value", "")))
        assert used <= known, f"{entry['name']}: {used - known} not set above"
        known.add(entry["name"])
    workers = environment(documents, WORKERS)
    assert workers["KERASTUNER_TUNER_ID"] == "worker$(JOB_COMPLETION_INDEX)"
    assert workers["JOB_COMPLETION_INDEX"] == {
        "fieldRef": {
            "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        }
    }
    job = documents[WORKERS]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert documents[CHIEF]["spec"]["completions"] == 1


def select_what_is_labelled(documents: Documents) -> None:
    labels = {key: pod(documents, key)["metadata"]["labels"] for key in (CHIEF, WORKERS, FILES)}

    def selected(selector: dict) -> list[tuple[str, str]]:
        return [key for key, own in labels.items() if selector.items() <= own.items()]

    assert selected(documents[SERVICE]["spec"]["selector"]) == [CHIEF]
    policy = documents[POLICY]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert selected(policy["podSelector"]["matchLabels"]) == [CHIEF]
    (ingress,) = policy["ingress"]
    (source,) = ingress["from"]
    assert set(source) == {"podSelector"}
    assert selected(source["podSelector"]["matchLabels"]) == [WORKERS]


def run_the_same(documents: Documents) -> None:
    chief, worker = container(documents, CHIEF), container(documents, WORKERS)
    for name in ("image", "args", "volumeMounts"):
        assert chief[name] == worker[name], name
    assert "command" not in chief and "command" not in worker  # the image's: train.py
    assert container(documents, FILES)["image"] == chief["image"]
    own = {"KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "JOB_COMPLETION_INDEX"}
    shared = [
        {name: value for name, value in environment(documents, key).items() if name not in own}
        for key in (CHIEF, WORKERS)
    ]
    assert shared[0] == shared[1]


def mount_what_is_declared(documents: Documents) -> None:
    for key in (CHIEF, WORKERS, FILES):
        spec = pod(documents, key)["spec"]
        mounted = [mount["name"] for mount in container(documents, key)["volumeMounts"]]
        assert sorted(mounted) == sorted(volume["name"] for volume in spec["volumes"])
        for volume in spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                claimed = documents.get(("PersistentVolumeClaim", claim["claimName"]))
                assert claimed is not None, claim
                assert claimed["spec"]["accessModes"] == ["ReadWriteMany"]
            elif options := volume.get("configMap"):
                assert ("ConfigMap", options["name"]) in documents
            else:
                assert "emptyDir" in volume


def read_options(documents: Documents, folder: Path) -> Config:
    """Parse the chief's command line, with the ConfigMap's files laid where it mounts them."""
    volumes = {volume["name"]: volume for volume in pod(documents, CHIEF)["spec"]["volumes"]}
    words = container(documents, CHIEF)["args"]
    for mount in container(documents, CHIEF)["volumeMounts"]:
        if options := volumes[mount["name"]].get("configMap"):
            for name, text in documents["ConfigMap", options["name"]]["data"].items():
                (folder / name).write_text(text, encoding="utf-8")
                inside = f"{mount['mountPath']}/{name}"
                words = [str(folder / name) if word == inside else word for word in words]
    return parse(words)


def use_mounted_folders(documents: Documents, folder: Path) -> None:
    config = read_options(documents, folder)
    writable = {
        mount["mountPath"]: not mount.get("readOnly", False)
        for mount in container(documents, CHIEF)["volumeMounts"]
    }
    for path in (config.data.train, config.data.test, config.model.checkpoint):
        assert not writable["/" + path.split("/")[1]], path
    cache = environment(documents, CHIEF)["XDG_CACHE_HOME"]
    for path in (config.output, cache, environment(documents, CHIEF)["HOME"]):
        assert writable["/" + path.split("/")[1]], path


def stop_and_start_well(documents: Documents) -> None:
    for key in (CHIEF, WORKERS):
        job, spec = documents[key]["spec"], pod(documents, key)["spec"]
        # the API server refuses podFailurePolicy with anything else, as it does unsorted codes
        assert (spec["restartPolicy"], job["podReplacementPolicy"]) == ("Never", "Failed")
        assert spec["terminationGracePeriodSeconds"] >= 30
        disrupted, stopped, bad_input = job["podFailurePolicy"]["rules"]
        assert disrupted == {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
        assert stopped == {
            "action": "Ignore",
            "onExitCodes": {"operator": "In", "values": [130, 143]},
        }
        assert bad_input == {
            "action": "FailJob",
            "onExitCodes": {"operator": "In", "values": [2]},
        }
    assert documents[CHIEF]["spec"]["backoffLimit"] > 0
    assert documents[WORKERS]["spec"]["backoffLimitPerIndex"] > 0
    assert documents[OPTIONS]["immutable"] is True


def have_no_rights(documents: Documents) -> None:
    """What the restricted Pod Security Standard asks for, and no more than a fixed share."""
    for key in (CHIEF, WORKERS, FILES):
        spec, only = pod(documents, key)["spec"], container(documents, key)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        # or a service named kerastuner-oracle would set KERASTUNER_ORACLE_PORT to a URL
        assert spec["enableServiceLinks"] is False
        for bound in ("requests", "limits"):
            assert set(only["resources"][bound]) >= {"cpu", "memory"}


CHECKS: list[Callable[[Documents], None]] = [
    follow_schemas,
    meet_at_one_port,
    have_names_of_their_own,
    select_what_is_labelled,
    run_the_same,
    mount_what_is_declared,
    stop_and_start_well,
    have_no_rights,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_documents(check: Callable[[Documents], None]) -> None:
    check(DOCUMENTS)


def test_options(tmp_path: Path) -> None:
    config = read_options(DOCUMENTS, tmp_path)
    assert (config.search.tuner, config.search.trials) == ("random", 20)
    assert set(config.search.space) == {"learning_rate", "batch_size"}
    assert config.search.workers == 0  # the workers are pods
    use_mounted_folders(DOCUMENTS, tmp_path)


def break_schema_by_unknown_field(documents: Documents) -> None:
    documents[WORKERS]["spec"]["backofLimit"] = 3


def break_schema_by_type(documents: Documents) -> None:
    container(documents, CHIEF)["env"][2]["value"] = 8000


def break_schema_by_missing_field(documents: Documents) -> None:
    del documents[CHIEF]["spec"]["template"]


def break_port(documents: Documents) -> None:
    documents[SERVICE]["spec"]["ports"][0]["targetPort"] = 8001


def break_service_name(documents: Documents) -> None:
    documents[SERVICE]["metadata"]["name"] = "oracle"


def break_names(documents: Documents) -> None:
    """What Kubernetes makes of a template that leaves the variable to it: it comes last."""
    entries = container(documents, WORKERS)["env"]
    entries.append(entries.pop(0))


def break_number_of_workers(documents: Documents) -> None:
    documents[WORKERS]["spec"]["parallelism"] = 2


def break_policy(documents: Documents) -> None:
    del documents[POLICY]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"][
        "app.kubernetes.io/component"
    ]


def break_command(documents: Documents) -> None:
    container(documents, WORKERS)["args"] += ["--search.trials", "30"]


def break_mount(documents: Documents) -> None:
    container(documents, WORKERS)["volumeMounts"][1]["name"] = "dat"


def break_claim(documents: Documents) -> None:
    del documents["PersistentVolumeClaim", "kbert-data"]


def break_restart(documents: Documents) -> None:
    pod(documents, CHIEF)["spec"]["restartPolicy"] = "OnFailure"


def break_security(documents: Documents) -> None:
    container(documents, WORKERS)["securityContext"]["allowPrivilegeEscalation"] = True


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (break_schema_by_unknown_field, follow_schemas),
        (break_schema_by_type, follow_schemas),
        (break_schema_by_missing_field, follow_schemas),
        (break_port, meet_at_one_port),
        (break_service_name, meet_at_one_port),
        (break_names, have_names_of_their_own),
        (break_number_of_workers, have_names_of_their_own),
        (break_policy, select_what_is_labelled),
        (break_command, run_the_same),
        (break_mount, mount_what_is_declared),
        (break_claim, mount_what_is_declared),
        (break_restart, stop_and_start_well),
        (break_security, have_no_rights),
    ],
    ids=lambda function: function.__name__,
)
def test_broken_documents_fail(
    damage: Callable[[Documents], None], check: Callable[[Documents], None]
) -> None:
    documents = copy.deepcopy(DOCUMENTS)
    damage(documents)
    refused = kubernetes_validate.ValidationError if check is follow_schemas else AssertionError
    with pytest.raises(refused):
        check(documents)


def test_dockerfile() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    copied: set[str] = set()
    for _, words in (step for step in steps if step[0] == "COPY"):
        copied |= set(words.split()[:-1])
    assert all((ROOT / name).exists() for name in copied), copied
    # what pip reads, and what train.py imports
    assert copied >= {"pyproject.toml", "constraints.txt", "README.md", "train.py", "kbert"}
    installs = [words for name, words in steps if name == "RUN" and "pip install" in words]
    assert all("-c constraints.txt" in words for words in installs) and installs
    last = dict(steps)
    assert last["FROM"] == "python:3.11-slim"
    assert int(last["USER"]) == pod(DOCUMENTS, CHIEF)["spec"]["securityContext"]["runAsUser"]
    assert yaml.safe_load(last["ENTRYPOINT"]) == ["tini", "--", "python", "train.py"]
