"""The JSON Schema of a job file, from the types."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from rectrain.api.job import RecTrainingJob


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a RecTrainingJob.

    It says what one field alone may be. Rules between fields, such as the model section that goes with ``model.type``,
    are checked by `rectrain.api.validate_job` only.
    """
    schema: dict[str, Any] = RecTrainingJob.model_json_schema(schema_generator=_JobSchema)
    # The types have defaults for these two, so that Python code need not repeat them; a file has to say them.
    schema["required"] = ["apiVersion", "kind", *schema["required"]]
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


class _JobSchema(GenerateJsonSchema):
    """Pydantic's schema without what only repeats names, and with every default."""

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        tidy: JsonSchemaValue = _tidy(super().generate(schema, mode))
        return tidy

    def get_default_value(self, schema: Any) -> Any:
        # A default that comes from other fields is no static one.
        if "default_factory" in schema and not schema.get("default_factory_takes_data"):
            return schema["default_factory"]()
        return super().get_default_value(schema)

    def encode_default(self, dft: Any) -> Any:
        # The defaults of an object's fields stand with those fields; the object's own default is to leave them out.
        if isinstance(dft, BaseModel):
            return dft.model_dump(mode="json", exclude_defaults=True)
        return super().encode_default(dft)


def _tidy(node: Any) -> Any:
    if isinstance(node, list):
        return [_tidy(element) for element in node]
    if not isinstance(node, dict):
        return node
    tidy = {}
    for key, value in node.items():
        # Titles repeat the names. A field of that name would hold a mapping.
        if key == "title" and isinstance(value, str):
            continue
        # A null default says "absent"; a constant's own default would say that a file can leave it out.
        if key == "default" and (value is None or "const" in node):
            continue
        tidy[key] = " ".join(value.split()) if key == "description" and isinstance(value, str) else _tidy(value)
    return tidy
