"""The published schemas of Kubernetes and KServe, cut down to what the manifests in examples/deploy use.

Run by hand after a manifest got a new field::

    python tests/deploy_schemas.py v1.35.0 swagger.json v0.20.0 serving.kserve.io_*.yaml

These are a release of Kubernetes, its OpenAPI document (``api/openapi-spec/swagger.json`` in kubernetes/kubernetes), a
release of KServe, and its custom resource definitions (``config/crd/full`` in kserve/kserve). Both are under the Apache
License 2.0, and so is what this program keeps of them, in tests/files/deploy_schemas.json. It fails where a manifest
has a field that the schemas have not. What they say in words only, or in CEL (``x-kubernetes-validations``), is not
kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted((ROOT / "examples" / "deploy").glob("*.yaml"))
KEPT = ROOT / "tests" / "files" / "deploy_schemas.json"
CONSTRAINTS = (
    "type",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def resources() -> dict[str, list[Any]]:
    """All resources in the manifests, by ``apiVersion/Kind``."""
    found: dict[str, list[Any]] = {}
    for path in MANIFESTS:
        for resource in yaml.safe_load_all(path.read_text()):
            found.setdefault(f"{resource['apiVersion']}/{resource['kind']}", []).append(resource)
    return found


def published(swagger: dict[str, Any], definitions: list[dict[str, Any]]) -> dict[str, Any]:
    """The schemas of all kinds, by ``apiVersion/Kind``."""
    found = {}
    for schema in swagger["definitions"].values():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            found["/".join(filter(None, (kind["group"], kind["version"], kind["kind"])))] = schema
    metadata = swagger["definitions"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]
    for definition in definitions:
        group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"]
        for version in definition["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = metadata  # the API server checks it, whatever the definition says
            found[f"{group}/{version['name']}/{kind}"] = schema
    return found


def cut(schema: dict[str, Any], values: list[Any], swagger: dict[str, Any], where: str) -> dict[str, Any]:
    """What a schema says of some values."""
    if "$ref" in schema:
        return cut(swagger["definitions"][schema["$ref"].rpartition("/")[2]], values, swagger, where)
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return {**INT_OR_STRING, **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
    kept = {name: schema[name] for name in CONSTRAINTS if name in schema}
    if schema.get("type") == "array":
        kept["items"] = cut(schema["items"], [one for value in values for one in value], swagger, f"{where}[]")
    elif isinstance(schema.get("additionalProperties"), dict):
        inner = [one for value in values for one in value.values()]
        kept["additionalProperties"] = cut(schema["additionalProperties"], inner, swagger, f"{where}.*")
    elif "properties" in schema:
        used = sorted({name for value in values for name in value})
        unknown = [name for name in used if name not in schema["properties"]]
        if unknown:
            raise SystemExit(f"{where}: the published schema has no {', '.join(unknown)}")
        kept |= {"type": "object", "additionalProperties": False, "required": sorted(schema.get("required", []))}
        kept["properties"] = {
            name: cut(
                schema["properties"][name],
                [value[name] for value in values if name in value],
                swagger,
                f"{where}.{name}",
            )
            for name in used
        }
    return kept


def main(kubernetes: str, swagger_path: str, kserve: str, *definition_paths: str) -> None:
    swagger = json.loads(Path(swagger_path).read_text())
    schemas = published(swagger, [yaml.safe_load(Path(path).read_text()) for path in definition_paths])
    kept = {kind: cut(schemas[kind], values, swagger, kind) for kind, values in resources().items()}
    sources = {
        "licence": "Apache License 2.0",
        "kubernetes": f"The Kubernetes Authors, OpenAPI document of {kubernetes}",
        "kserve": f"The KServe Authors, custom resource definitions of {kserve}",
    }
    KEPT.write_text(json.dumps({"sources": sources, "schemas": kept}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
