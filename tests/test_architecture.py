"""Which package may import which, read from the source; and what no file may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("seqapp", "pipelines", "serving")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LIBRARY = [path for path in FILES if path.is_relative_to(ROOT / "seqapp")]

# Folder or file -> what it must not import, directly or inside a function.
FORBIDDEN = {
    "seqapp": ("lightning", "pytorch_lightning", "mlflow", "fastapi", "starlette", "uvicorn", "typer", "rich",
               "sklearn", "pipelines", "serving"),
    "seqapp/nn": ("seqapp.tasks", "seqapp.models", "seqapp.data", "seqapp.bundle", "seqapp.config"),
    "seqapp/models": ("seqapp.tasks", "seqapp.bundle"),
    "seqapp/data": ("seqapp.tasks", "seqapp.models", "seqapp.nn", "seqapp.bundle"),
    "seqapp/tasks": ("seqapp.bundle", "seqapp.config", "pipelines", "serving"),
    "seqapp/decoding.py": ("seqapp.models", "seqapp.tasks", "seqapp.nn", "seqapp.data", "seqapp.beam_search"),
    "seqapp/beam_search.py": ("seqapp.models", "seqapp.tasks", "seqapp.nn", "seqapp.data"),
    "seqapp/completion.py": ("seqapp.tasks", "seqapp.bundle", "seqapp.config"),
    "seqapp/completer.py": ("seqapp.tasks", "seqapp.bundle", "seqapp.config"),
    "seqapp/completion_rows.py": ("seqapp.tasks", "seqapp.bundle", "seqapp.config"),
    "seqapp/registry.py": ("seqapp.nn", "seqapp.models", "seqapp.tasks", "seqapp.data", "seqapp.config", "torch"),
    "pipelines": ("serving", "fastapi"),
    "serving": ("pipelines", "lightning", "pytorch_lightning"),
}  # fmt: skip
# (file, package): allowed inside functions only.
LAZY = {("seqapp/references.py", "mlflow")}
UNSAFE_MODULES = ("pickle", "joblib", "cloudpickle", "dill", "marshal", "shelve")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether inside a function); ``from a import b`` counts as both a and a.b."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_of(path).split(".")
                package = package[: len(package) - node.level + (path.name == "__init__.py")]
                base = ".".join([*package, base]).rstrip(".")
            yield base, node.lineno, lazy
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, lazy
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno, lazy
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy or isinstance(node, functions))

    yield from walk(tree_of(path), False)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def violations(path: Path) -> list[str]:
    found = []
    for place, packages in FORBIDDEN.items():
        if name_of(path) == place or name_of(path).startswith(f"{place}/"):
            for module, line, lazy in imports(path):
                for package in packages:
                    allowed = lazy and (name_of(path), package) in LAZY
                    if within(module, package) and not allowed:
                        found.append(f"{name_of(path)}:{line} imports {module}")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_in_the_allowed_direction(path: Path) -> None:
    assert not violations(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_that_runs_code_from_data(path: Path) -> None:
    for module, line, _ in imports(path):
        assert not any(within(module, unsafe) for unsafe in UNSAFE_MODULES), f"{name_of(path)}:{line} imports {module}"
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        place = f"{name_of(path)}:{node.lineno}"
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in ("eval", "exec", "builtins.eval", "builtins.exec", "compile"), f"{place} calls {called}"
        if called in ("torch.load", "load_from_checkpoint") or called.endswith(".load_from_checkpoint"):
            assert keywords.get("weights_only") == "True", f"{place}: {called} without weights_only=True"
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
            assert "Safe" in keywords.get("Loader", "") or called == "yaml.safe_load", f"{place} calls {called}"
        if called in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"{place}: {called} with allow_pickle"
        assert keywords.get("shell") != "True", f"{place}: {called} with shell=True"


def test_the_checks_above_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "seqapp" / "nn").mkdir(parents=True)
    bad = tmp_path / "seqapp" / "nn" / "bad.py"
    bad.write_text("from .. import tasks\nimport mlflow.pyfunc\ndef f():\n    from seqapp import data\n")
    assert violations(bad) == [
        "seqapp/nn/bad.py:2 imports mlflow.pyfunc",
        "seqapp/nn/bad.py:1 imports seqapp.tasks",
        "seqapp/nn/bad.py:4 imports seqapp.data",
    ]
    for text in ("import pickle", "from joblib import dump", "torch.load(f)", "torch.load(f, weights_only=False)",
                 "eval(x)", "yaml.load(x, Loader=yaml.Loader)", "subprocess.run(x, shell=True)",
                 "importlib.import_module('dill')"):  # fmt: skip
        bad.write_text(text)
        with pytest.raises(AssertionError):
            test_nothing_that_runs_code_from_data(bad)
    lazy = tmp_path / "seqapp" / "references.py"
    lazy.write_text("def f():\n    import mlflow\n")
    assert not violations(lazy)
    lazy.write_text("import mlflow\n")
    assert violations(lazy)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_every_public_name_of_the_library_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree), f"{name_of(path)} says nothing of itself"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]


def test_every_module_of_the_library_imports_alone_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("an import opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for path in LIBRARY:
        import_module(module_of(path))
