"""The chart's values.schema.json: what stands there by hand, with the agent's own settings as the agent knows them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from rankscope.agent.config import Settings

SCHEMA = Path(__file__).resolve().parent.parent / "helm/rankscope/values.schema.json"


def values_schema_json() -> str:
    """The schema with the agent's settings put in anew."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    _, definitions = msgspec.json.schema_components([Settings], ref_template="#/$defs/{name}")
    schema["properties"]["settings"] = definitions.pop("Settings")
    schema["$defs"] = definitions
    return json.dumps(schema, indent=2) + "\n"
