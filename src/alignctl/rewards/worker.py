"""The process that compares answers for `RuleWorkers`: a line of JSON in, a line of JSON out.

It imports neither torch nor the program of its parent. It ends when the other end of its pipe
closes, which it sees as soon as it is idle. While it compares, the kernel counts its processor time
and ends it by `TIME_OVER` at the limit: a machine that is busy with others does not shorten it.
"""

import json
import os
import resource
import signal
import sys

from alignctl.rewards.processes import READY, TIME_OVER
from alignctl.rewards.rules import RULES

MEMORY_BYTES = 2 << 30
"""Address space of a worker: powers of powers fill the memory of the machine before their time."""


def main() -> None:
    """Answer tasks until there are no more."""
    limit_seconds = float(sys.argv[1])
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(TIME_OVER, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    RULES["math_rule"](r"\boxed{\sqrt{2}}", r"2^{1/2}")  # imports what the first task needs
    print(json.dumps(READY), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit_seconds)
        reason = RULES[task["eval_func"]](task["completion"], task["reference"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reason), file=answers, flush=True)


if __name__ == "__main__":
    main()
