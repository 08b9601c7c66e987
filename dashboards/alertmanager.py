"""An Alertmanager configuration to begin with: hardware to operators, code to the job's owner, one page a fault.

Operators are told by GPU or host and a job's owner by job, so that what has one root is one incident, whichever sign of it
comes first. Receivers are empty and are a site's to fill; a maintenance window is a time interval, or a silence by
`host_name`.
"""

from __future__ import annotations

import json
from typing import Any

_OPERATORS, _OWNER = "operators", "job-owner"


def configuration() -> dict[str, Any]:
    """Routes and inhibitions."""
    return {
        "route": {
            "receiver": _OWNER,
            "group_by": ["rankscope_job"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "4h",
            "routes": [
                {
                    "matchers": ['team = "operators"'],
                    "receiver": _OPERATORS,
                    "group_by": ["host_name", "hw_id"],
                    "mute_time_intervals": ["maintenance"],
                },
                {"matchers": ['team = "owner"'], "receiver": _OWNER},
            ],
        },
        "inhibit_rules": [
            # What was found says why: the symptoms of the same job are no news beside it.
            {
                "source_matchers": ['incident = "finding"'],
                "target_matchers": ['incident = "job"'],
                "equal": ["rankscope_job"],
            },
            # A rank whose slowness has a name is no straggler besides.
            {
                "source_matchers": ['alertname =~ "Rankscope(Hardware|Environment|Code)Finding"'],
                "target_matchers": ['alertname = "RankscopeStraggler"'],
                "equal": ["rankscope_job"],
            },
            # A GPU's counters are the finding's own evidence.
            {
                "source_matchers": ['alertname = "RankscopeHardwareFinding"'],
                "target_matchers": ['incident = "gpu"'],
                "equal": ["hw_id"],
            },
        ],
        "time_intervals": [{"name": "maintenance", "time_intervals": [{"years": ["1970"]}]}],
        "receivers": [{"name": _OPERATORS}, {"name": _OWNER}],
    }


def configuration_json() -> str:
    """The text of rules/alertmanager.json."""
    return json.dumps(configuration(), indent=2) + "\n"
