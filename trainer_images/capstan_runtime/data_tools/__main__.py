"""`capstan data`, which the operator's command line starts as a process of its own."""

from capstan_runtime.data_tools.cli import main

raise SystemExit(main())
