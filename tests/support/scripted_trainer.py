"""A trainer that does what SCRIPT says, a JSON list of steps, and imports next to nothing.

`{"report": {...}}` sends a Progress, `{"enter": ["Step", 51]}` writes its page, `{"print": "..."}` a line,
`{"sleep": seconds}`, `{"signal": 9}` sends itself a signal, `{"wait for": 12}` waits for one, `{"exit": code}` ends it.
As a spare it does SPARE_SCRIPT first, and then waits for its membership. A step with a `"fence"` is for that one alone.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any


def main() -> None:
    if "CAPSTAN_SPARE" in os.environ:
        with socket.socket(fileno=int(os.environ["CAPSTAN_SPARE"])) as line, line.makefile("rb") as lines:
            follow(json.loads(os.environ.get("SPARE_SCRIPT", "[]")), fence=0)
            with contextlib.suppress(BrokenPipeError):  # its membership is here: nobody waits to hear that it is ready
                line.sendall(b"ready\n")
            membership = json.loads(lines.readline())
    else:
        membership = json.loads(os.environ["CAPSTAN_MEMBERSHIP"])
    follow(json.loads(os.environ["SCRIPT"]), membership["fence"])


def follow(script: list[dict[str, Any]], fence: int) -> None:
    for step in script:
        if step.get("fence", fence) != fence:
            continue
        match step:
            case {"report": progress}:
                # As a real trainer: whoever hears of its first step may signal it.
                signal.pthread_sigmask(signal.SIG_BLOCK, {s["wait for"] for s in script if "wait for" in s})
                os.write(int(os.environ["CAPSTAN_REPORT_FD"]), json.dumps(progress).encode() + b"\n")
            case {"enter": [section, done]}:
                from capstan_runtime.beat import Beat
                from capstan_runtime.contract.state import Section

                Beat.from_environ(os.environ).enter(Section(section), done)
            case {"print": line}:
                print(line, flush=True)
            case {"sleep": seconds}:
                time.sleep(seconds)
            case {"signal": number}:
                os.kill(os.getpid(), number)
            case {"wait for": number}:
                signal.pthread_sigmask(signal.SIG_BLOCK, {number})
                signal.sigwait({number})
            case {"exit": code}:
                os._exit(code)
            case _:
                sys.exit(f"what is {step}?")


main()
