"""The list of rules in the docs is the list of rules in the code.

``MOBILEC_UPDATE_DOCS=1 python -m pytest tests/test_docs.py`` writes it anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from mobilec.passes.catalogue import find_rule
from mobilec.passes.pipelines import TARGETS, rule_names

PAGE = Path(__file__).parents[1] / "docs" / "rule-list.md"
OPENING = """# All rules

In the order in which they run, as far as targets agree on one. *Same bits*: only the order of memory accesses changes.
*Exact*: the same in real numbers, rounded elsewhere. `mobilec passes RULE` shows the algebra of a rule, what it
refuses and its budgets; `mobilec passes --target TARGET` the rules of a target, some of which run twice.

"""


def page() -> str:
    header = f"| rule | what it does | | {' | '.join(TARGETS)} |"
    lines = [header, "|---|---|---|" + ":-:|" * len(TARGETS)]
    for name in rule_names():
        rule = find_rule(name)
        marks = " | ".join("x" if target in rule.targets else "" for target in TARGETS)
        lines.append(f"| `{name}` | {rule.summary} | {rule.kind} | {marks} |")
    return OPENING + "\n".join(lines) + "\n"


def test_the_docs_list_every_rule() -> None:
    if os.environ.get("MOBILEC_UPDATE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()
