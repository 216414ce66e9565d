"""The rules of style in CONTRIBUTING.md that a machine can check: each is a function from parsed files to what breaks it."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("learners", "streams", "services")  # each may import those before it; house_rooms.py has the sub-rooms

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 6
BANNED_WORDS = {"manager", "helper", "util", "common", "misc", "processor", "wrapper", "base"}
STEP = ["read", "checked", "appended", "learned", "acknowledged", "emitted", "acted"]  # docs/design/journal.md, rules 5 and 8

# Which file may import an outside system, or two that are told why.
DOORS: Mapping[str, str | tuple[str, ...]] = {
    "apsw": "streams/sqlite/database.py",
    "sqlite3": "streams/sqlite/database.py",
    "fastavro": "streams/formats/avro.py",
    "grpc": "services/endpoint/grpc.py",
    "kafka": ("streams/kafka/client.py", "streams/kafka/reader.py"),  # what is asked and appended, and what is read
    "mlflow": "services/registry/mlflow.py",
    "PIL": "streams/formats/images.py",
    "onnxruntime": "streams/features/backbone.py",
    "prometheus_client": "services/metrics/page.py",
    "pyarrow": "streams/formats/arrow.py",
    "ray.serve": "services/serving/replica.py",
    "river": ("learners/drift/detectors.py", "learners/river_adapter.py"),  # its detectors, and its models
    "scipy": ("learners/analytic/linalg.py", "streams/branch/host.py"),  # its routines, and its threads
    "transformers": "learners/draft/hugging_face.py",
    "vllm": ("services/llm/engine.py", "services/llm/in_worker.py"),  # a replica's process, and the worker's inside it
}
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CLOCKS_AND_CHANCE = {"time", "datetime", "random", "secrets", "uuid"}
GENERATORS = {"Generator", "BitGenerator", "SeedSequence", "PCG64", "Philox", "default_rng"}  # carry their own seed
BROAD = {"Exception", "BaseException"}
LABELS = {"y", "label", "labels"}

# Where catching everything is right: (file, function) -> why. The only way to catch everything anywhere else is here.
BROAD_EXCEPTS: Mapping[tuple[str, str], str] = {
    ("streams/sqlite/database.py", "transaction"): "whatever happened is rolled back and raised again",
    ("learners/drift/detectors.py", "_set"): "a Rust panic has no class that can be imported; all else goes on",
    ("services/endpoint/http.py", "HttpApp.__call__"): "a request that fails unforeseen gets its 500 and harms no other",
    ("services/endpoint/http.py", "HttpApp._infer"): "every failed request is counted, and its error raised again",
    ("services/endpoint/grpc.py", "GrpcApp.answer"): "a call that fails unforeseen gets its INTERNAL and harms no other",
    ("services/llm/app.py", "LlmApp.__call__"): "a request that fails unforeseen gets its 500 and harms no other",
    ("services/endpoint/recording.py", "Recorder._append_all"): "what a commit raises is looked for record by record",
    ("services/endpoint/recording.py", "Recorder._made"): "records that cannot be made are counted; the thread goes on",
    ("services/endpoint/recording.py", "Recorder._commit_apart"): "what one job raises is counted or told; the thread goes on",
    ("services/metrics/sources.py", "Source._asked"): "what one source raises keeps no other from being heard",
    ("streams/kafka/reader.py", "KafkaReader._failing"): "decompressors raise what they like; the reader is given up",
    ("services/serving/up.py", "_tried_ray"): "Ray raises bare Exceptions where it does not start; all end `up` in a sentence",
    ("services/llm/engine.py", "Engine._asked"): "vLLM hands on what a worker raised as a bare Exception; it becomes a refusal",
    ("services/endpoint/grpc.py", "GrpcApp.infer"): "every failed call is counted, and its error raised again",
}

OPEN_KEYWORDS = {("services/llm/engine.py", name) for name in ("generate", "once")}  # other libraries' own methods

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file of ours, under its path from the repository's root."""

    path: str
    source: str

    @property
    def tree(self) -> ast.Module:
        """The file as a syntax tree."""
        return parsed(self.source, self.path)

    @property
    def room(self) -> str:
        """The top-level folder it stands in."""
        return self.path.split("/")[0]

    @property
    def name(self) -> str:
        """The name it is imported by."""
        return "millrace." + self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def at(self, node: ast.AST, what: str) -> str:
        """One violation, as `file:line what`."""
        return f"{self.path}:{getattr(node, 'lineno', 1)} {what}"


@lru_cache(maxsize=1024)
def parsed(source: str, path: str) -> ast.Module:
    """A file as a syntax tree, parsed once for all rules."""
    return ast.parse(source, path)


def modules(*folders: str) -> list[Module]:
    """Every Python file under the given folders, in order of path; but those that `make proto` makes, which nobody writes."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py") if not file.stem.endswith("_pb2"))
    return [Module(file.relative_to(ROOT).as_posix(), file.read_text()) for file in files]


# --- what several rules ask of a tree


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def dotted(node: ast.expr) -> str:
    """`np.random.seed` for that expression, with "?" for what is not a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@lru_cache(maxsize=1)
def own_modules() -> frozenset[str]:
    """Every module of ours, by the name that it is imported by."""
    return frozenset(module.name for module in modules(*ROOMS))


def imports(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every name imported anywhere in the file, in full (`a.b` of `from a import b`), and ours that calls get as text."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.name.split(".") + (["__init__"] if module.path.endswith("__init__.py") else [])
            above = package[: -node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            by_name = dotted(node.func).split(".")[-1] in {"import_module", "__import__"}
            passed = enumerate([*node.args, *(word.value for word in node.keywords)])
            texts = {value.value: i for i, value in passed if isinstance(value, ast.Constant)}
            yield from ((node, text) for text, i in texts.items() if text in own_modules() or (by_name and i == 0))


def within(name: str, package: str) -> bool:
    """Whether an imported name is the package or something in it."""
    return name == package or name.startswith(package + ".")


def words(name: str) -> list[str]:
    """`KafkaManager2` and `kafka_manager` -> kafka, manager."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def parameters(function: Function) -> list[ast.arg]:
    """What a caller passes: `self` and `cls` left out."""
    spec = function.args
    every = [*spec.posonlyargs, *spec.args, *([spec.vararg] if spec.vararg else []), *spec.kwonlyargs]
    return [arg for i, arg in enumerate(every) if i or arg.arg not in {"self", "cls"}]


# --- rules over one file


def unpicklers_used(module: Module) -> Iterator[str]:
    """Nothing is unpickled (style 19)."""
    for node, name in imports(module):
        if name.split(".")[0] in UNPICKLERS:
            yield module.at(node, f"imports {name}")
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        name = dotted(node.func)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield module.at(node, "calls torch.load without weights_only=True")
        if name.endswith("read_pickle") or keywords.get("allow_pickle", "False") != "False":
            yield module.at(node, f"lets {name} unpickle")


def broad_excepts(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every place that catches everything, with the function it stands in."""

    def walk(node: ast.AST, path: tuple[str, ...]) -> Iterator[tuple[ast.AST, str]]:
        if isinstance(node, Function | ast.ClassDef):
            path = (*path, node.name)
        caught: list[ast.expr | None] = []
        if isinstance(node, ast.ExceptHandler):
            caught = list(node.type.elts) if isinstance(node.type, ast.Tuple) else [node.type]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
            caught = list(node.args)
        if any(kind is None or dotted(kind).split(".")[-1] in BROAD for kind in caught):
            yield node, ".".join(path)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, path)

    return walk(module.tree, ())


def broad_excepts_unexplained(module: Module) -> Iterator[str]:
    """Everything is caught only where BROAD_EXCEPTS says why (style 14)."""
    for node, function in broad_excepts(module):
        if (module.path, function) not in BROAD_EXCEPTS:
            yield module.at(node, f"catches everything in {function or 'the module'}")


def environment_read(module: Module) -> Iterator[str]:
    """Only services/config/config.py reads the environment (style 20), and what must be set before it can be loaded."""
    if module.path in ("services/config/config.py", "services/config/kernels.py"):
        return
    outside = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv")
    for node, name in imports(module):
        if name in outside:
            yield module.at(node, f"imports {name}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and dotted(node) in outside:
            yield module.at(node, f"uses {dotted(node)}")


def open_keywords(module: Module) -> Iterator[str]:
    """No function takes `**kwargs`, so none passes them through, but in OPEN_KEYWORDS."""
    for function in functions(module.tree):
        if function.args.kwarg and (module.path, function.name) not in OPEN_KEYWORDS:
            yield module.at(function, f"{function.name} takes **{function.args.kwarg.arg}")


def too_large(module: Module) -> Iterator[str]:
    """Files, functions and parameter lists are small (style 25)."""
    lines = len(module.source.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{module.path}:1 has {lines} lines"
    for function in functions(module.tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield module.at(function, f"{function.name} has {length} lines")
        if len(parameters(function)) > MAX_PARAMETERS:
            yield module.at(function, f"{function.name} has {len(parameters(function))} parameters")


def empty_names(module: Module) -> Iterator[str]:
    """Files and classes are named for what is in them (style 24)."""
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    for node, name in [(module.tree, module.path.removesuffix(".py")), *((node, node.name) for node in classes)]:
        for word in words(name):
            if word in BANNED_WORDS or word.removesuffix("s") in BANNED_WORDS:
                yield module.at(node, f"{name} is called a {word}")


def untyped(module: Module) -> Iterator[str]:
    """Every function says the type of what it takes and gives (style 25)."""
    for function in functions(module.tree):
        missing = [arg.arg for arg in parameters(function) if arg.annotation is None]
        if missing or function.returns is None:
            yield module.at(function, f"{function.name} leaves {', '.join(missing) or 'its answer'} untyped")


def clocks_and_chance(module: Module) -> Iterator[str]:
    """A learner has no clock and no global generator: both are arguments (style 7)."""
    if module.room != "learners":
        return
    for node, name in imports(module):
        chance = within(name, "numpy.random") and name.split(".")[-1] not in GENERATORS
        if name.split(".")[0] in CLOCKS_AND_CHANCE or chance or name == "os.urandom":
            yield module.at(node, f"imports {name}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and dotted(node.func).endswith("default_rng") and not node.args + node.keywords:
            yield module.at(node, "makes a generator without a seed")
        drawn = re.fullmatch(r"(np|numpy)\.random\.(\w+)", dotted(node)) if isinstance(node, ast.Attribute) else None
        if drawn and drawn[2] not in GENERATORS:
            yield module.at(node, f"uses {drawn[0]}")


def inherited_learners(module: Module) -> Iterator[str]:
    """Learners have no base class (style 4); protocols stand in protocol.py, exceptions in errors.py.

    Records of keys may inherit keys: the [learner] table is flat, and 18 keys written eight times over would drift apart.
    """
    if module.room != "learners" or module.path == "learners/errors.py":
        return
    allowed = {"NetworkConfig", "ReplayConfig"}
    if module.path in ("learners/protocol.py", "learners/replay/learner.py"):  # what a learner is; what replay adds
        allowed = {"Protocol"}
    for node in ast.walk(module.tree):
        bases = [ast.unparse(kind) for kind in getattr(node, "bases", [])]
        if set(bases) - allowed:
            yield module.at(node, f"{getattr(node, 'name', '?')} inherits from {', '.join(bases)}")


def torch_outside_learners(module: Module) -> Iterator[str]:
    """Only learners import torch, and what vLLM runs in its worker: it takes seconds, and all else works without it."""
    if module.room != "learners" and module.path != "services/llm/in_worker.py":
        yield from (module.at(node, f"imports {name}") for node, name in imports(module) if within(name, "torch"))


def labels_as_truth(module: Module) -> Iterator[str]:
    """`is None` decides on labels, since 0, 0.0, False and () are data (style 15)."""
    for node in ast.walk(module.tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            asked = [node.test]
        elif isinstance(node, ast.comprehension):
            asked = node.ifs
        elif isinstance(node, ast.BoolOp):
            asked = node.values
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            asked = [node.operand]
        elif isinstance(node, ast.Call) and dotted(node.func) == "bool":
            asked = node.args
        for test in asked:
            if isinstance(test, ast.Name | ast.Attribute) and dotted(test).split(".")[-1] in LABELS:
                yield module.at(test, f"asks whether {dotted(test)} is true")


def mocks(module: Module) -> Iterator[str]:
    """Fakes are public classes; our own code is never mocked (style 27)."""
    for node, name in imports(module):
        if within(name, "unittest.mock") or within(name, "mock") or within(name, "pytest_mock"):
            yield module.at(node, f"imports {name}")


# --- rules over several files


def doors_passed(tree: Iterable[Module]) -> Iterator[str]:
    """Each outside system is imported by one file (style 2)."""
    imported = [(module, node, name) for module in tree for node, name in imports(module)]
    for system, door in DOORS.items():
        users = [(module, node) for module, node, name in imported if within(name, system)]
        open_to = (door,) if isinstance(door, str) else door
        beside = f"imports {system} beside {' and '.join(open_to)}"
        yield from (module.at(node, beside) for module, node in users if module.path not in open_to)


def import_cycles(tree: Iterable[Module]) -> Iterator[str]:
    """No module is imported, by whatever way round, by what it imports."""
    known = {module.name: module for module in tree}
    graph = {name: {owner for _, used in imports(known[name]) if (owner := owner_of(used, known))} - {name} for name in known}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " <- ".join(error.args[1])


def owner_of(used: str, known: Mapping[str, Module]) -> str | None:
    """The module of ours that an imported name comes from."""
    return next((name for name in (used, used.rpartition(".")[0]) if name in known), None)


def repeated_file_names(tree: Sequence[Module]) -> Iterator[str]:
    """What tests share is imported by its bare file name, so no two files have the same."""
    seen: dict[str, str] = {}
    for module in tree:
        name = module.path.rpartition("/")[2]
        if name not in {"__init__.py", "conftest.py"} and seen.setdefault(name, module.path) != module.path:
            yield f"{module.path}:1 is called like {seen[name]}"


# --- rules over one thing in particular


def steps_yielded(module: Module) -> list[str]:
    """The names that the method `step` yields, in the order of its lines."""
    bodies = [function for function in functions(module.tree) if function.name == "step"]
    inside = (node for body in bodies for node in ast.walk(body) if isinstance(node, ast.Yield))
    yields = sorted(inside, key=lambda node: (node.lineno, node.col_offset))
    return [node.value.value if isinstance(node.value, ast.Constant) else "?" for node in yields]


def methods_of(module: Module, name: str) -> set[str]:
    """The public methods of a class."""
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef) and node.name == name]
    return {part.name for node in classes for part in node.body if isinstance(part, Function) and part.name[0] != "_"}


def unexplained_targets(makefile: str) -> list[str]:
    """Targets that people call and that carry no `##` comment (style 28)."""
    rules = re.findall(r"^([a-zA-Z][\w-]*)\s*:(?!=)(.*)$", makefile, re.MULTILINE)
    return [target for target, rest in rules if "## " not in rest]


def other_than_make(script: str) -> list[str]:
    """Lines of CI's script that do something themselves instead of calling a target (style 28)."""
    harmless = r'\s*(#.*)?$|set -euo pipefail$|cd "\$\(dirname "\$0"\)/\.\."$|export MILLRACE_CI=1$|(exec )?make( [\w-]+)+$'
    return [line for line in script.splitlines() if not re.match(harmless, line)]


FILE_RULES: Mapping[str, Callable[[Module], Iterator[str]]] = {
    "nothing is unpickled": unpicklers_used,
    "everything is caught only where the table says why": broad_excepts_unexplained,
    "only config.py reads the environment": environment_read,
    "no function takes **kwargs": open_keywords,
    "files, functions and parameter lists are small": too_large,
    "names are nouns from the domain": empty_names,
    "every function is typed": untyped,
    "learners have no clock and no global generator": clocks_and_chance,
    "learners have no base class": inherited_learners,
    "torch is for learners": torch_outside_learners,
    "is None decides on labels": labels_as_truth,
    "our own code is never mocked": mocks,
}
TEST_RULES = (too_large, empty_names, unpicklers_used, mocks)  # those that hold for the tests too
