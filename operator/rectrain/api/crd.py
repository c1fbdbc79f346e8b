"""The CustomResourceDefinition of RecTrainingJob, from the types.

A structural schema of OpenAPI v3 as apiextensions/v1 wants it: nothing is referred to, every list and text has a bound
(the server estimates the cost of rules from them), defaults are static, and rules are CEL with the messages that
`rectrain validate` has.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from rectrain.api.base import ApiModel
from rectrain.api.job import GROUP, KIND, VERSION, RecTrainingJob
from rectrain.api.paths import fields_with_models
from rectrain.api.schema import job_schema

PLURAL, SHORT_NAME = "rectrainingjobs", "rtj"
NAME = f"{PLURAL}.{GROUP}"

MAY_CHANGE = ("runPolicy",)
"""Parts of the spec that may change once the job exists; all others would make its checkpoints those of another run."""

_UNCHANGED = (
    "must not change once the job exists: delete the job and apply it again, or give the changed job another name"
)

# What `kubectl get` shows, by paths that are simple: a condition cannot be picked out of a list by its type.
_COLUMNS = (
    ("State", "string", ".status.state", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Progress", "string", ".status.progress.completed", 0),
    ("Examples/s", "integer", ".status.progress.examplesPerSecond", 0),
    ("Restarts", "integer", ".status.restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Model", "string", ".spec.model.type", 1),
    ("Loss", "number", ".status.progress.loss", 1),
    ("MLflow run", "string", ".status.results.mlflowRunId", 1),
    ("Bundle", "string", ".status.results.modelUri", 1),
)


def custom_resource_definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": ["rectrain"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
                        for name, kind, path, priority in _COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": open_api_schema()},
                }
            ],
        },
    }


def open_api_schema() -> dict[str, Any]:
    """Return the structural schema of a RecTrainingJob."""
    schema = job_schema()
    definitions = dict(schema["$defs"])
    for model in {model for _, model in fields_with_models(RecTrainingJob)}:
        definitions[model.__name__] = {**definitions[model.__name__], **_validations(model)}
    root = {key: schema[key] for key in ("type", "description", "properties")}
    root["properties"] = {
        **root["properties"],
        "apiVersion": {"type": "string", "description": "Version of the job's types."},
        "kind": {"type": "string", "description": "Kind of the object."},
        # The API server has its own schema for metadata; the name is there for the rules about it.
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
    }
    structural = _structural({**root, **_validations(RecTrainingJob), "required": ["spec"]}, definitions)
    spec = structural["properties"]["spec"]["properties"]
    for name in spec:
        if name not in MAY_CHANGE:
            unchanged = {"rule": "self == oldSelf", "message": _UNCHANGED, "reason": "FieldValueForbidden"}
            spec[name].setdefault("x-kubernetes-validations", []).append(unchanged)
    return structural


def _validations(model: type[BaseModel]) -> dict[str, Any]:
    rules = model.RULES if issubclass(model, ApiModel) else ()
    validations = [entry for rule in rules if (entry := rule.validation()) is not None]
    return {"x-kubernetes-validations": validations} if validations else {}


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node of a JSON Schema in the dialect of apiextensions/v1."""
    if "$ref" in node:
        more = {key: value for key, value in node.items() if key != "$ref"}
        return _structural({**definitions[node["$ref"].rpartition("/")[2]], **more}, definitions)
    if "anyOf" in node:
        return _structural(_without_any_of(node), definitions)
    made: dict[str, Any] = {}
    for key, value in node.items():
        match key:
            case "properties":
                made[key] = {name: _structural(field, definitions) for name, field in value.items()}
            case "items":
                made[key] = _structural(value, definitions)
            case "additionalProperties" if isinstance(value, dict):
                made[key] = _structural(value, definitions)
            case "additionalProperties":
                # False is what the API server does without being told: it warns of unknown fields, or refuses them.
                made |= {"x-kubernetes-preserve-unknown-fields": True} if value else {}
            case "const":
                made["enum"] = [value]
            case "exclusiveMinimum":
                made |= {"minimum": value, "exclusiveMinimum": True}
            case "exclusiveMaximum":
                made |= {"maximum": value, "exclusiveMaximum": True}
            case "propertyNames":
                pass  # Kubernetes has no limits on the names of a mapping.
            case _:
                made[key] = value
    if made.get("type") == "integer":
        made["format"] = "int64"
    return made


def _without_any_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node with its alternatives as Kubernetes writes them: absent for null, or a number or text."""
    more = {key: value for key, value in node.items() if key != "anyOf"}
    options = [option for option in node["anyOf"] if option.get("type") != "null"]
    if len(options) == 1:
        return {**options[0], **more}
    assert {option["type"] for option in options} == {"string", "integer"}, f"{options}: has no structural schema"
    return {"x-kubernetes-int-or-string": True, **more}
