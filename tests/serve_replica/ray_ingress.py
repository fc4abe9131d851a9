"""`python -m tests.serve_replica.ray_ingress FOLDER PORT`: Ray of one node whose Serve proxy answers at PORT."""

import os
import sys
import threading
from pathlib import Path

from capstan_runtime.serve_replica.environment import ray_environment

os.environ |= ray_environment(os.environ)
os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "capstan_runtime.serve_replica.ingress:middlewares"

from ray import serve  # it reads the environment

from capstan_runtime.serve_replica.family import die_with_parent
from capstan_runtime.serve_replica.ingress import build
from capstan_runtime.serve_replica.one_node import start_ray

die_with_parent(os.getppid())
start_ray(Path(sys.argv[1]))
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build({}), name="capstan", route_prefix="/")
print("it serves", flush=True)
threading.Event().wait()
