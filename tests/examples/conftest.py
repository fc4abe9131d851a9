"""The examples' programs are scripts: they find each other as Python finds what lies beside a script."""

import sys

sys.path.insert(0, "examples")
