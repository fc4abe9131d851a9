"""`capstan checkpoint`, which the operator's command line starts as a process of its own."""

import argparse

from capstan_runtime.checkpoint import cli

parser = argparse.ArgumentParser(prog="capstan checkpoint", description="Look at checkpoints and check their bytes.")
cli.add_arguments(parser)
raise SystemExit(cli.run(parser.parse_args()))
