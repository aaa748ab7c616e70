"""Turns Kubernetes' OpenAPI document into JSON schemas for kubeconform: schemas.py SWAGGER FOLDER

Each kind that the chart and the manifests may have becomes FOLDER/KIND-GROUP-VERSION.json, complete in itself
and strict: a field that this version of the API does not have is an error, as are wrong types, missing
required fields and unknown words of an enumeration. What only the API server's code checks (as that some
fields exclude each other) is not in it.
"""

import json
import re
import sys
from pathlib import Path

KINDS = {
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "DaemonSet",
    "Deployment",
    "HorizontalPodAutoscaler",
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PriorityClass",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
    "StatefulSet",
}
#: Written by hand in the API's Go types, so that the document says "string".
BY_HAND = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {
        "anyOf": [{"type": "string", "pattern": "^[0-9]+%$|^[a-z0-9-]+$"}, {"type": "integer"}]
    },
    # resource.ParseQuantity
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {
        "anyOf": [
            {"type": "string", "pattern": r"^[+-]?[0-9.]+(m|u|n|[kMGTPE]i?|Ki|e[+-]?[0-9]+|E[+-]?[0-9]+)?$"},
            {"type": "number"},
        ]
    },
}
_PREFIX = "#/definitions/"


def standalone(name, definitions):
    """The schema of one definition with all that it refers to."""
    used, wanted = {}, [name]
    while wanted:
        one = wanted.pop()
        if one in used:
            continue
        if one in BY_HAND:
            used[one] = BY_HAND[one]
            continue
        schema = used[one] = strict(definitions[one])
        wanted += [ref.removeprefix(_PREFIX) for ref in references(schema)]
    return {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": _PREFIX + name, "definitions": used}


def strict(schema):
    """``schema`` without what is for people, and closed where it has a list of fields."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: strict(one) for name, one in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
        if key not in ("description", "default", "format") and not key.startswith("x-kubernetes")
    }
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def references(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from references(one)


def main(swagger, folder):
    definitions = json.loads(Path(swagger).read_text())["definitions"]
    Path(folder).mkdir(parents=True)
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            if kind["kind"] in KINDS and re.fullmatch(r"v[0-9]+", kind["version"]):
                made = standalone(name, definitions)
                # Of a kind that has a home these two are always needed, though the document does not say so.
                made = {
                    "allOf": [{"$ref": made.pop("$ref")}],
                    "required": ["apiVersion", "kind", "metadata"],
                    **made,
                }
                file = "-".join(
                    filter(None, (kind["kind"].lower(), kind["group"].partition(".")[0], kind["version"]))
                )
                (Path(folder) / f"{file}.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
