"""JSON schemas of Kubernetes' objects, strict: a field that they do not name is an error.

Those of Kubernetes' own kinds are in kubernetes-validate. Those of Argo Rollouts, KEDA and the Prometheus
operator are their CRDs' schemas, in npm packages; those of KServe are read from the classes of its SDK, whose
wheel is not installed, because it asks for other versions than AutoVoice. `make build/crds` gets these files.
"""

from __future__ import annotations

import ast
import json
import re
import tarfile
import zipfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

Schema = dict[str, Any]
KUBERNETES = "1.37.0"
PACKAGES = Path(__file__).resolve().parents[2] / "build" / "crds"
NPM = {
    "argoproj.io": "kubernetes-models-argo-rollouts-0.3.2.tgz",
    "keda.sh": "kubernetes-models-keda-0.3.1.tgz",
    "monitoring.coreos.com": "kubernetes-models-prometheus-operator-1.6.3.tgz",
}
KSERVE = "kserve-0.21.0-py3-none-any.whl"
KSERVE_KINDS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
}
QUANTITY = {"type": ["string", "integer"]}


@cache
def validator(version: str, kind: str) -> jsonschema.Draft202012Validator:
    """What checks objects of a kind, as `apps/v1`, `Deployment`; skips where their package is missing."""
    group = version.partition("/")[0]
    if (version, kind) in KSERVE_KINDS:
        schema = Kserve(_package(KSERVE)).schema(KSERVE_KINDS[version, kind])
    elif group in NPM:
        schema = _npm_schema(_package(NPM[group]), version, kind)
    else:
        name = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", version)
        schema = _core_file(f"{kind.lower()}-{name}")
    return jsonschema.Draft202012Validator(_resolved(schema))


def faults(found: Schema) -> list[str]:
    """What is wrong with an object, by its schema."""
    checker = validator(found["apiVersion"], found["kind"])
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(found)]


def is_valid(found: Schema) -> bool:
    """Whether the schema takes an object; quicker than to ask for all that is wrong."""
    return bool(validator(found["apiVersion"], found["kind"]).is_valid(found))


def _package(name: str) -> Path:
    path = PACKAGES / name
    if not path.is_file():
        pytest.skip(f"no {path.relative_to(PACKAGES.parents[1])}: make build/crds")
    return path


@cache
def _core_file(name: str) -> Schema:
    folder = f"kubernetes-json-schema/v{KUBERNETES}-local-strict"
    text = resources.files("kubernetes_validate").joinpath(f"{folder}/{name}.json").read_text("utf-8")
    found: Schema = json.loads(text)
    return found


def _resolved(schema: Any) -> Any:
    """The schema as one document with all definitions, so that none is looked up elsewhere."""
    text = json.dumps(schema).replace('"/api/_definitions.json#/$defs/', '"#/$defs/')
    whole = {name: each for name, each in json.loads(text).items() if name != "$id"}
    whole["$defs"] = _core_file("_definitions")["$defs"]
    return whole


def _npm_schema(package: Path, version: str, kind: str) -> Schema:
    """The schema of a CRD, which lies in a JavaScript file as a literal."""
    with tarfile.open(package) as archive:
        member = archive.extractfile(f"package/{version}/{kind}.js")
        assert member is not None
        text = member.read().decode()
    (literal,) = re.findall(r"^const schema = (\{.*?^\});$", text, re.MULTILINE | re.DOTALL)
    schema: Schema = _strict(json.loads(literal))
    return schema


def _strict(schema: Any) -> Any:
    """A schema that refuses fields which it does not name, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        return {"$ref": f"#/$defs/{reference.rstrip('#')}"}
    made = {name: _strict(each) for name, each in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict):
        made.setdefault("additionalProperties", False)
    return made


class Kserve:
    """Schemas of KServe's kinds, from the types that the classes of its SDK name."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            self._texts = {
                Path(name).stem.replace("_", ""): archive.read(name).decode()
                for name in archive.namelist()
                if name.startswith("kserve/models/")
            }

    def schema(self, kind: str) -> Schema:
        """Schema of a class; `apiVersion` and `kind` must be there."""
        found = self._of_class(kind)
        return {**found, "required": ["apiVersion", "kind", "metadata", "spec"]}

    def _of_class(self, name: str) -> Schema:
        text = self._texts[name.lower()]
        types, names = (self._literal(text, table) for table in ("openapi_types", "attribute_map"))
        required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)
        return {
            "type": "object",
            "properties": {names[each]: self._of_type(types[each]) for each in types},
            "required": [names[each] for each in required],
            "additionalProperties": False,
        }

    def _literal(self, text: str, name: str) -> dict[str, str]:
        found = re.search(rf"^    {name} = (\{{.*?^    \}})", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        table: dict[str, str] = ast.literal_eval(found[1])
        return table

    def _of_type(self, name: str) -> Schema:
        simple = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
        if name in simple:
            return {"type": simple[name]}
        if found := re.fullmatch(r"list\[(.+)\]", name):
            return {"type": "array", "items": self._of_type(found[1])}
        if found := re.fullmatch(r"dict\(str, (.+)\)", name):
            return {"type": "object", "additionalProperties": self._of_type(found[1])}
        if name == "ResourceQuantity":
            return QUANTITY
        if name.lower() in self._texts:
            return self._of_class(name)
        for package in ("api.core.v1", "apimachinery.pkg.apis.meta.v1", "api.apps.v1"):
            known = f"io.k8s.{package}.{re.sub('^(V1|K8sIoApiAppsV1)', '', name)}"
            if known in _core_file("_definitions")["$defs"]:
                return {"$ref": f"#/$defs/{known}"}
        return {}
