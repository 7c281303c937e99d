"""Layers import one way: the table of ARCHITECTURE.md, held over the syntax trees of all modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What a part may import of ours (a part may always import itself), and which big libraries it may use.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "exhaustion": ({"errors"}, set()),
    "operators": (set(), set()),
    "spec": ({"errors"}, {"numpy"}),
    "nearby": ({"errors"}, set()),
    "files": ({"errors", "leftovers", "nearby"}, set()),
    "leftovers": (set(), set()),
    "runs": ({"errors", "files", "leftovers", "spec"}, set()),
    "config": ({"errors", "nearby"}, set()),
    # The simulation rounds with the exporter's own functions: one definition of what the file holds.
    "arithmetic": ({"errors", "spec"}, {"numpy"}),
    "advice": ({"config", "errors", "spec"}, set()),
    "process": (set(), set()),
    "ranks": ({"errors", "exhaustion", "process"}, {"torch"}),
    "graph": ({"errors", "files", "nearby", "operators", "spec"}, {"numpy", "onnx", "onnxsim"}),
    "plan": ({"config", "errors", "nearby", "operators", "spec", "graph"}, {"numpy", "onnx"}),
    "numerics": ({"errors", "ranks.alone", "spec"}, {"numpy", "torch"}),
    "frontend": ({"errors", "operators", "spec", "graph"}, {"numpy", "onnx", "torch"}),
    "calibrate": (
        {
            *("advice", "errors", "config", "exhaustion", "operators", "process", "ranks", "runs", "spec"),
            *("numerics", "frontend", "arithmetic"),
        },
        {"numpy", "torch"},
    ),
    "search": (
        {
            *("calibrate", "config", "errors", "graph.lookup", "nearby", "numerics", "operators", "plan", "process"),
            *("runs", "spec"),
        },
        {"numpy", "scipy", "torch"},
    ),
    "export": ({"arithmetic", "errors", "operators", "spec", "graph.lookup", "graph.scopes"}, {"numpy", "onnx"}),
    "validate": ({"errors", "leftovers", "operators", "spec", "graph.lookup"}, {"numpy", "onnx", "onnxruntime"}),
    "data": ({"errors", "nearby", "user_code"}, {"numpy", "PIL"}),
    "normalization": ({"data", "errors", "frontend", "spec"}, {"numpy", "torch"}),
    "torch_module": ({"errors", "leftovers"}, {"onnx", "torch"}),
    "synthesis": ({"calibrate", "errors", "frontend", "numerics", "spec"}, {"numpy", "torch"}),
    "targets": ({"config", "errors", "spec", "graph.lookup", "plan", "export", "validate"}, {"onnx"}),
    "gates": ({"config", "errors", "validate"}, {"numpy", "scipy"}),
    "report": ({"advice", "config", "errors", "gates", "spec", "validate"}, {"jinja2", "matplotlib", "onnxruntime"}),
    "user_code": ({"errors", "nearby", "process"}, set()),
    "signature": ({"data", "errors", "graph.lookup", "validate"}, {"numpy"}),
    "fidelity": ({"errors", "frontend", "graph", "validate"}, {"numpy", "onnx", "onnxruntime", "torch"}),
}
BIG = {"numpy", "scipy", "torch", "onnx", "onnxsim", "onnxruntime", "PIL", "click", "rich", "jinja2", "matplotlib"}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, wherever in the module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "relative"


def modules(part: str) -> list[Path]:
    package, module = ROOT / "pdq_export" / part, ROOT / "pdq_export" / f"{part}.py"
    return sorted(package.rglob("*.py")) if package.is_dir() else [module]


def is_below(name: str, allowed: str) -> bool:
    return f"{name}.".startswith(f"{allowed}.")


@pytest.mark.parametrize("part", RULES)
def test_a_layer_imports_only_what_lies_below_it(part: str) -> None:
    ours, libraries = RULES[part]
    wrong = []
    for file in modules(part):
        for line, name in imports(file):
            top, _, inner = name.partition(".")
            if top == "pdq_export":
                ok = inner in ("", "__version__") or any(is_below(inner, below) for below in {part, *ours})
            else:
                ok = top not in BIG - libraries and top != "relative"
            if not ok:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_part_has_a_rule() -> None:
    package = ROOT / "pdq_export"
    parts = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    outermost = {
        "__init__",
        "__main__",
        "commands",
        "work",
    }
    assert parts - outermost - {"cli", "calib_data"} == set(RULES)


def test_only_the_command_line_prints_or_exits() -> None:
    wrong = []
    for file in sorted((ROOT / "pdq_export").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        where = file.relative_to(ROOT)
        wrong += [f"{where}:{line} calls {f}" for line, f in calls if f in ("print", "sys.exit", "exit")]
    assert not wrong, "\n".join(wrong)


# What other threads see of it: only the owner of a process may do this, the command line or whoever calls process.py.
OF_THE_PROCESS = {
    *("mallopt", "redirect_stdout", "redirect_stderr", "dup2", "catch_warnings", "simplefilter", "filterwarnings"),
    *("captureWarnings", "basicConfig", "setLevel", "set_default_logger_severity", "environ", "putenv", "chdir"),
    *("umask", "setrecursionlimit", "seterr", "set_printoptions", "set_num_threads", "set_num_interop_threads"),
    *("set_default_dtype", "set_grad_enabled", "fork_rng", "use_deterministic_algorithms", "set_deterministic"),
    *("random.seed", "torch.manual_seed", "setrlimit", "signal.signal", "setlocale", "gc.disable", "gc.freeze"),
}


def test_the_library_leaves_the_process_alone() -> None:
    wrong = []
    for file in sorted((ROOT / "pdq_export").rglob("*.py")):
        if file.relative_to(ROOT / "pdq_export").as_posix() in ("process.py", "calibrate/precision.py"):
            continue  # the latter settles, while it calibrates, what the caller has changed, and puts it back
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            if name in OF_THE_PROCESS or name.rpartition(".")[2] in OF_THE_PROCESS:
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} has {name}")
    assert not wrong, "\n".join(wrong)


def test_the_command_line_starts_without_anything_heavy() -> None:
    """At module level the command line imports click, rich and the light modules alone."""
    wrong = []
    for file in sorted((ROOT / "cli").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [alias.name for node in top_level if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in top_level if isinstance(node, ast.ImportFrom) and node.level == 0]
        ours = [n for n in names if is_below(n, "pdq_export") and n != "pdq_export"]
        light = [f"pdq_export.{module}" for module in ("config", "errors", "exhaustion", "files", "nearby", "process")]
        wrong += [f"cli/{file.name} imports {n}" for n in ours if not any(is_below(n, module) for module in light)]
        wrong += [f"cli/{file.name} imports {n}" for n in names if n.split(".")[0] in BIG - {"click", "rich"}]
    assert not wrong, "\n".join(wrong)
