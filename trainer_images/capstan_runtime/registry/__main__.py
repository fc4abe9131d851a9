"""`capstan model`, which the operator's command line starts as a process of its own."""

from capstan_runtime.registry.cli import main

raise SystemExit(main())
