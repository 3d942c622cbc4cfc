"""Kubernetes' custom resources against their published definitions, without a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator


@pytest.fixture(scope="session")
def crd_validators() -> dict[tuple[str, str], Draft202012Validator]:
    """A validator for each (apiVersion, kind) that the CRD files in RAYDENSE_CRD_DIR define."""
    directory = Path(os.environ.get("RAYDENSE_CRD_DIR", ""))
    if not list(directory.glob("ray.io_*.yaml")):
        pytest.skip("RAYDENSE_CRD_DIR names no directory with KubeRay's definitions (ray.io_rayclusters.yaml …)")
    validators = {}
    for path in sorted(directory.glob("*.yaml")):
        definition = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            key = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            validators[key] = Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"], top=True))
    return validators


def _strict(schema: dict[str, Any], top: bool = False) -> dict[str, Any]:
    """As JSON Schema, with every unknown field refused: the API server would drop it in silence."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {k: v for k, v in schema.items() if k in ("type", "enum", "required", "minimum", "maximum", "pattern")}
    if properties := schema.get("properties"):
        result["properties"] = {name: _strict(inner) for name, inner in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = _strict(schema["items"])
    if top:
        result["properties"]["metadata"] = {"type": "object"}
    return result
