"""No line of what ships runs code that came as data: no pickle, no eval, no shell, no module named by a user.

Linters look for the same by name; this reads the syntax tree, so it has no `noqa` and knows what is allowed and why.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("operator", "trainer_images", "examples", "scripts", "benchmarks")
PRODUCT = ("operator", "trainer_images")
UNSAFE_MODULES = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
UNSAFE_BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
SHELLS = frozenset({"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"})
UNPACKERS = frozenset({"extractall", "unpack_archive"})
SAFE_LOADERS = frozenset({"SafeLoader", "yaml.SafeLoader", "yaml.CSafeLoader"})


def flaws(source: str, *, is_product: bool = True) -> list[str]:
    """`<line>: <what>` for each thing in `source` that could run data as code."""
    tree = ast.parse(source)
    safe = SAFE_LOADERS | _safe_loaders(tree)
    found = [
        flaw
        for node in ast.walk(tree)
        for flaw in (
            *_of_imports(node),
            *(_of_calls(node, safe, is_product=is_product) if isinstance(node, ast.Call) else ()),
        )
    ]
    return sorted(found)


def _of_imports(node: ast.AST) -> Iterator[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    yield from (f"{node.lineno}: imports {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES)  # type: ignore[attr-defined]


def _of_calls(call: ast.Call, safe_loaders: frozenset[str], *, is_product: bool) -> Iterator[str]:
    name = ast.unparse(call.func)
    options = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    last = name.rpartition(".")[2]
    if name in UNSAFE_BUILTINS or name in SHELLS or last == "create_subprocess_shell":
        yield f"{call.lineno}: calls {name}"
    if "shell" in options and not _is(options["shell"], False):
        yield f"{call.lineno}: {name} with shell={ast.unparse(options['shell'])}"
    if last == "load" and "allow_pickle" in options and not _is(options["allow_pickle"], False):
        yield f"{call.lineno}: {name} with allow_pickle={ast.unparse(options['allow_pickle'])}"
    if name in ("np.load", "numpy.load") and "allow_pickle" not in options:
        yield f"{call.lineno}: {name} does not say allow_pickle=False"
    if name == "torch.load" and not ("weights_only" in options and _is(options["weights_only"], True)):
        yield f"{call.lineno}: torch.load does not say weights_only=True"
    if name in ("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"):
        yield f"{call.lineno}: calls {name}"
    if name in ("yaml.load", "yaml.load_all") and ast.unparse(options.get("Loader", ast.Constant(None))) not in (
        safe_loaders
    ):
        yield f"{call.lineno}: {name} without a safe loader"
    if last in UNPACKERS:
        yield f"{call.lineno}: {name} unpacks an archive wherever its members say"
    if is_product and last == "import_module" and not _is_listed(call.args[0]):
        yield f"{call.lineno}: imports a module that no table in the source names"
    yield from (f"{arg.lineno}: gives text to a shell" for arg in call.args if _is_shell_command(arg))


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_listed(node: ast.expr) -> bool:
    """A literal, or an entry of a table such as _MODULES[name]: not what a document says."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return node.value.id.isupper()
    return isinstance(node, ast.Constant)


def _is_shell_command(node: ast.expr) -> bool:
    """["sh", "-c", something that is not written down here]."""
    if not isinstance(node, ast.List) or len(node.elts) < 3:
        return False
    program, option, text = node.elts[:3]
    is_shell = isinstance(program, ast.Constant) and Path(str(program.value)).name in ("sh", "bash", "dash", "zsh")
    return (
        is_shell
        and isinstance(option, ast.Constant)
        and str(option.value).endswith("c")
        and not isinstance(text, ast.Constant)
    )


_SAFE_LOADER = "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"


def _safe_loaders(tree: ast.Module) -> frozenset[str]:
    """What this file calls PyYAML's safe loader, in C or in Python, and classes whose every base is one."""
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    derived = {
        one.name for one in classes if one.bases and all("SafeLoader" in ast.unparse(base) for base in one.bases)
    }
    assigned = (node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.value) == _SAFE_LOADER)
    return frozenset(derived | {ast.unparse(target) for node in assigned for target in node.targets})


ALLOWED = {
    "trainer_images/capstan_runtime/custom_model.py": "imports a module that no table in the source names",
}
"""Who starts a job may run code of their own in its pods, by `workers.image` and `program` as by `model.custom`."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_that_ships_runs_data_as_code(folder: str) -> None:
    files = sorted(Path(folder).rglob("*.py"))
    assert files, f"{folder} holds no Python: the test looks at the wrong place"
    found = {str(file): flaws(file.read_text(), is_product=folder in PRODUCT) for file in files}
    told = {(file, line.partition(": ")[2]) for file, lines in found.items() for line in lines}
    assert told == {(file, flaw) for file, flaw in ALLOWED.items() if file.startswith(f"{folder}/")}


@pytest.mark.parametrize(
    ("source", "flaw"),
    [
        ("import pickle", "1: imports pickle"),
        ("from cloudpickle import loads", "1: imports cloudpickle"),
        ("import torch.serialization\neval(text)", "2: calls eval"),
        ("os.system(command)", "1: calls os.system"),
        ("subprocess.run(command, shell=True)", "1: subprocess.run with shell=True"),
        ("subprocess.run(command, shell=is_shell)", "1: subprocess.run with shell=is_shell"),
        ("await asyncio.create_subprocess_shell(command)", "1: calls asyncio.create_subprocess_shell"),
        ("subprocess.run(['bash', '-c', f'ls {folder}'])", "1: gives text to a shell"),
        ("subprocess.run(['/bin/sh', '-ec', text])", "1: gives text to a shell"),
        ("np.load(path)", "1: np.load does not say allow_pickle=False"),
        ("np.load(path, allow_pickle=True)", "1: np.load with allow_pickle=True"),
        ("torch.load(path)", "1: torch.load does not say weights_only=True"),
        ("torch.load(path, weights_only=False)", "1: torch.load does not say weights_only=True"),
        ("yaml.load(text, Loader=yaml.Loader)", "1: yaml.load without a safe loader"),
        ("class Mine(yaml.Loader): ...\nyaml.load(text, Loader=Mine)", "2: yaml.load without a safe loader"),
        ("yaml.unsafe_load(text)", "1: calls yaml.unsafe_load"),
        ("tar.extractall(folder)", "1: tar.extractall unpacks an archive wherever its members say"),
        ("importlib.import_module(spec.target)", "1: imports a module that no table in the source names"),
    ],
)
def test_each_way_to_run_data_as_code_is_seen(source: str, flaw: str) -> None:
    assert flaws(source) == [flaw]


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['nvidia-smi', '-L'], check=True)",
        "subprocess.run(['sh', '-c', 'echo $$'])",
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "class Mine(yaml.SafeLoader): ...\nyaml.load(text, Loader=Mine)",
        "importlib.import_module(_MODULES[runtime])",
        "model.eval()\nre.compile(pattern)",
    ],
)
def test_what_is_safe_is_left_alone(source: str) -> None:
    assert flaws(source) == []
