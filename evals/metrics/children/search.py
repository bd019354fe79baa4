"""Says whether texts match a regular expression. Asked by `evals.metrics.pattern`, which kills it where it takes too long.

stdin: a JSON line of [pattern, whole] and then one of each text. stdout: true or false for each, the first line included.
"""

import json
import re
import sys


def main() -> None:
    pattern, whole = json.loads(sys.stdin.readline())
    compiled = re.compile(pattern)
    matches = compiled.fullmatch if whole else compiled.search
    print("true", flush=True)
    for line in sys.stdin:
        print(json.dumps(matches(json.loads(line)) is not None), flush=True)


main()
