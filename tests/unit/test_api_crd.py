"""The CustomResourceDefinition, as far as it can be judged without an API server."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.api.crd import MAY_CHANGE, custom_resource_definition, open_api_schema
from rectrain.api.metric_names import DEFINITIONS, METRIC_PATTERN, MetricNameError, parse_metric
from rectrain.api.rules import Rule, forbidden, one_of, required
from rectrain.api.rules import given as is_given

SCHEMA = open_api_schema()


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in node:
            yield from nodes(node[key], path + mark)


NODES = dict(nodes(SCHEMA))
SPEC = {path: node for path, node in NODES.items() if path.startswith(".spec")}


def test_every_node_has_a_type() -> None:
    assert [path for path, node in NODES.items() if not {"type", "x-kubernetes-int-or-string"} & node.keys()] == []


def test_every_field_is_described() -> None:
    inside = [path for path in NODES if path and not path.startswith(".metadata") and not path.endswith(("]", "}"))]
    assert [path for path in inside if not NODES[path].get("description")] == []


def test_lists_and_texts_of_the_spec_have_a_bound() -> None:
    def is_unbounded(node: dict[str, Any]) -> bool:
        match node.get("type"):
            case "array":
                return "maxItems" not in node
            case "string":
                return "maxLength" not in node and "enum" not in node
        return False

    assert [path for path, node in SPEC.items() if is_unbounded(node)] == []


def test_only_the_pod_template_has_free_form() -> None:
    free = [path for path, node in NODES.items() if node.get("x-kubernetes-preserve-unknown-fields")]
    assert free == [".spec.workers.template"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        (".spec.features", ["name"]),
        (".spec.labels", ["name"]),
        (".spec.sharding.constraints", ["table"]),
        (".status.conditions", ["type"]),
        (".status.results.metrics", ["name"]),
    ],
)
def test_lists_are_merged_by_key(path: str, keys: list[str]) -> None:
    assert (NODES[path]["x-kubernetes-list-type"], NODES[path]["x-kubernetes-list-map-keys"]) == ("map", keys)
    assert set(keys) <= set(NODES[f"{path}[]"]["required"])


def test_every_part_but_the_run_policy_is_immutable() -> None:
    parts = NODES[".spec"]["properties"]
    mutable = {
        name
        for name, part in parts.items()
        if all(entry["rule"] != "self == oldSelf" for entry in part.get("x-kubernetes-validations", []))
    }
    assert mutable == set(MAY_CHANGE) == {"runPolicy"}
    # A rule on a change is not asked when a part appears or goes, so every part is always there.
    assert [name for name in parts if "default" not in parts[name] and name not in NODES[".spec"]["required"]] == []


def test_columns_are_in_the_order_of_the_conventions() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    assert [column["name"] for column in version["additionalPrinterColumns"] if column["priority"] == 0] == [
        *("State", "Step", "Progress", "Examples/s", "Restarts", "Age")
    ]


NAMES = st.sampled_from([*DEFINITIONS, "recal", ""]) | st.text("abc_@1", max_size=6)


@given(NAMES, st.sampled_from(["", "@", "@0", "@1", "@20", "@01", "@x", "@1@2", " ", "\n"]))
def test_pattern_of_metrics_is_what_is_parsed(name: str, cutoff: str) -> None:
    try:
        parse_metric(name + cutoff)
        is_metric = True
    except MetricNameError:
        is_metric = False
    # RE2's $ is the end of the text alone.
    assert (re.search(METRIC_PATTERN.replace("$", r"\Z"), name + cutoff) is not None) is is_metric


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            required("cardinality", one_of("kind", "Dense"), "is required"),
            {
                "rule": 'has(self.cardinality) || !(has(self.kind) && self.kind in ["Dense"])',
                "fieldPath": ".cardinality",
                "reason": "FieldValueRequired",
                "message": "is required",
            },
        ),
        (
            forbidden("a", ~is_given("b") & is_given("c"), "is only for {kind}; {{}} is not"),
            {
                "rule": "!has(self.a) || (!has(self.b) && has(self.c))",
                "fieldPath": ".a",
                "reason": "FieldValueForbidden",
                "messageExpression": '"is only for " + self.kind + "; {" + "}" + " is not"',
            },
        ),
        (Rule("a", "must be so", broken=lambda _: False, cel=None), None),
    ],
)
def test_rule_as_validation(rule: Rule, expected: dict[str, Any] | None) -> None:
    assert rule.validation() == expected
