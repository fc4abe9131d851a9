"""Stands in for Ray: `python scripted_driver.py SCRIPT FOLDER PARENT` plays one replica after the other.

SCRIPT is JSON, a list of lives: each a list of words. `die` ends that replica's line; `hold`
answers words of the pod until it is killed, and has drained when nobody can connect any
more; anything else is said. The life `[exit]` is the driver's own end, with a last line.
"""

import json
import os
import socket
import sys
import threading

from capstan_runtime.contract import env
from capstan_runtime.serve_replica import line


def live(words: list[str]) -> None:
    if words == ["exit"]:
        print("the raylet is gone", flush=True)
        os._exit(3)
    pod = line.connect(os.environ[line.PATH])
    line.say(pod, line.Kind.HERE, pid=os.getpid())
    output = line.hear(pod)
    assert output is not None
    assert output.descriptor is not None
    os.write(output.descriptor, f"life of {words}\n".encode())
    os.close(output.descriptor)
    door: int | None = None
    for word in words:
        match word:
            case "die":
                pod.close()
                return
            case "hold":
                threading.Thread(target=serve, args=(pod, door)).start()
                return
            case "failed":
                line.say(pod, line.Kind.FAILED, code=65, message="checkpoint 7 is corrupt")
            case "warm":
                line.say(pod, line.Kind.WARM)
                heard = line.hear(pod)
                assert heard is not None
                assert heard.kind is line.Kind.SERVE
                door = heard.descriptor


def serve(pod: socket.socket, door: int | None) -> None:
    while (word := line.hear(pod)) is not None:
        print(f"heard {word.kind}", flush=True)
        if door is not None:
            os.close(door)
        if word.kind is line.Kind.DRAIN:
            wait_until_nobody_listens()
            line.say(pod, line.Kind.DRAINED)


def wait_until_nobody_listens() -> None:
    """With a door that is left open, clients would wait as long as a replica finishes what it has begun."""
    while True:
        try:
            socket.create_connection((os.environ[env.POD_IP], env.SERVE_PORT)).close()
        except ConnectionError:
            return


for life in json.loads(sys.argv[1]):
    live(life)
print("the script is over", flush=True)
threading.Event().wait()
