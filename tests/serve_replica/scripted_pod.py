"""`python -m tests.serve_replica.scripted_pod SCRIPT`: a serving pod whose Ray is `scripted_driver.py`."""

import sys
from pathlib import Path

from capstan_runtime.serve_replica.__main__ import main

raise SystemExit(main((sys.executable, str(Path(__file__).with_name("scripted_driver.py")), sys.argv[1])))
