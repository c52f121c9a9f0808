"""Kubernetes manifests for the tests that check them: read, taken apart, held to the schemas."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import yaml

# the oldest that the manifests name, and the newest that the schemas know
VERSIONS = ("1.29", kubernetes_validate.latest_version())
WITH_TEMPLATE = ("Job", "Deployment")

Documents = dict[tuple[str, str], dict]
"""Every document of a folder, by kind and name."""


def read_documents(folder: Path) -> Documents:
    found: Documents = {}
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            key = (document["kind"], document["metadata"]["name"])
            assert key not in found, f"{key} is there twice"
            found[key] = document
    return found


def pod(documents: Documents, key: tuple[str, str]) -> dict:
    """The pod of a Job or Deployment, or the Pod itself: with metadata and spec."""
    document = documents[key]
    return document["spec"]["template"] if document["kind"] in WITH_TEMPLATE else document


def container(documents: Documents, key: tuple[str, str]) -> dict:
    (only,) = pod(documents, key)["spec"]["containers"]
    return only


def follow_schemas(documents: Documents) -> None:
    for document in documents.values():
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
