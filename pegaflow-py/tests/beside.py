# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of its own: `beside.py MODEL SETTINGS`, settings of the connector as JSON.

Says what it answered as JSON.
"""

import json
import sys

import conftest  # noqa: F401, sets the environment
from harness import Answers, Spy, engine, spilled


class _Forever:
    """Stands in for pytest's monkeypatch: nothing is undone."""

    setattr = staticmethod(setattr)


if __name__ == "__main__":
    folder, extra = sys.argv[1:]
    Spy(_Forever())
    llm = engine(folder, json.loads(extra))
    answers = Answers(llm)
    spilled(llm)
    print(json.dumps({"tokens": answers.tokens, "cached": answers.cached}))
