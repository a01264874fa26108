from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nuropb_gateway_asgi
import nuropb_gateway_asgi.gateway
from tests.unit.test_public_names import PATHS

PACKAGE = nuropb_gateway_asgi.__name__
ROOT = Path(nuropb_gateway_asgi.__file__).parent
#: Where everything comes together for whoever uses it; nothing of the package imports these.
DOORS = ("", "__main__")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


#: By name within the package; the package itself is "".
FILES = {_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def _absolute(module: str, level: int, name: str | None) -> str:
    """What a ``from`` import of ``module`` names, as an absolute name."""
    if level == 0:
        return name or ""
    is_package = FILES[module].name == "__init__.py"
    parts = [PACKAGE, *filter(None, module.split("."))]
    parts = parts[: len(parts) - level + is_package]
    return ".".join([*parts, name] if name else parts)


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(module: str) -> tuple[set[str], set[str]]:
    """The absolute names of all modules that a module imports, within functions too; and those not for types only."""
    found: tuple[set[str], set[str]] = set(), set()
    nodes: list[tuple[ast.AST, bool]] = [(ast.parse(FILES[module].read_text(encoding="utf-8")), False)]
    while nodes:
        node, for_types = nodes.pop()
        for_types = for_types or _is_for_types_only(node)
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node.level, node.module)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                names.add(name if name.removeprefix(f"{PACKAGE}.") in FILES else base)
        elif not isinstance(node, ast.expr):  # there are no imports in an expression
            nodes += ((child, for_types) for child in ast.iter_child_nodes(node))
        for each in found[:1] if for_types else found:
            each.update(names)
    return found


# Read by the first test that asks, because every worker of a run collects all modules of tests.
@functools.cache
def _read() -> dict[str, tuple[set[str], set[str]]]:
    return {module: _imports(module) for module in FILES}


def imports() -> dict[str, set[str]]:
    """The absolute names that each module imports."""
    return {module: names for module, (names, _) in _read().items()}


def internal() -> dict[str, set[str]]:
    """The names within the package that each module imports, without those that are never run."""
    return {
        module: {name.removeprefix(PACKAGE).removeprefix(".") for name in names if name.split(".")[0] == PACKAGE}
        for module, (_, names) in _read().items()
    }


def _room(module: str) -> str:
    """The room of a module: its folder at the top of the package, or the module itself if it lies there."""
    return module.split(".")[0]


ROOMS = {_room(module) for module in FILES} - {*DOORS, "_version"}


def _drawn() -> dict[str, int]:
    """The row of every room in the drawing that opens gateway.py, counted from above."""
    assert nuropb_gateway_asgi.gateway.__doc__ is not None
    _, _, drawing = nuropb_gateway_asgi.gateway.__doc__.partition("::\n")
    rows = [re.split(r"\s{2,}", line.strip(" ├└─│"))[0] for line in drawing.splitlines() if line.strip()]
    return {room: row for row, rooms in enumerate(rows) for room in re.findall(r"[a-z_]+", rooms)}


DRAWN = _drawn()


@functools.cache
def neighbours() -> dict[str, set[str]]:
    """The rooms that each room imports, for types and within functions, too."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, names in imports().items():
        if module in DOORS:
            continue
        within = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
        found.setdefault(_room(module), set()).update(map(_room, within))
    return {room: others - {room, "_version"} for room, others in found.items()}


def test_the_drawing_has_every_room_and_nothing_else() -> None:
    assert set(DRAWN) == ROOMS
    assert (DRAWN["cli"], DRAWN["gateway"]) == (0, 1)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_only_point_down(room: str) -> None:
    for imported in neighbours()[room]:
        assert imported not in DOORS
        assert DRAWN[imported] >= DRAWN[room], f"{room} imports {imported}, which is drawn above it"


def test_no_room_imports_itself_by_a_detour() -> None:
    graphlib.TopologicalSorter(neighbours()).prepare()


def test_no_module_imports_itself_by_a_detour() -> None:
    graphlib.TopologicalSorter(internal()).prepare()


def test_the_top_level_stays_small() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 20


@pytest.mark.parametrize("room", sorted(room for room in ROOMS if (ROOT / room).is_dir()))
def test_every_room_says_which_question_it_answers(room: str) -> None:
    door = importlib.import_module(f"{PACKAGE}.{room}")
    assert door.__doc__ is not None
    assert "?" in door.__doc__.split("\n")[0]
    assert door.__all__


def test_the_gateway_imports_the_admin_api_only_when_it_is_on() -> None:
    tree = ast.parse(FILES["gateway"].read_text(encoding="utf-8"))
    at_once = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [node for node in at_once if (node.module or "").split(".")[0] == "admin"]
    importers = {module for module in FILES if "admin" in map(_room, internal()[module])} - {"gateway"}
    assert {_room(module) for module in importers} == {"admin"}


def test_the_version_imports_nothing() -> None:
    assert imports()["_version"] <= {"__future__", "typing"}


def test_a_private_module_is_only_imported_within_its_room() -> None:
    for module, imported in internal().items():
        for name in imported - {"_version"}:
            package, _, last = name.rpartition(".")
            if last.startswith("_"):
                assert module == package or module.startswith(f"{package}.")


#: Where a library may be imported: a room, or a module.
KNOWN_TO = [
    ("nuropb", set()),
    # The package itself: for the type of its app.
    (
        "starlette",
        {
            "",
            "admin",
            "agents",
            "authentication",
            "cli",
            "console",
            "contracts",
            "gateway",
            "handlers",
            "observability",
            "static",
            "testing",
        },
    ),
    ("mcp", {"agents.serving"}),
    ("mcp_types", {"agents.serving"}),
    ("jose", {"authentication.keys"}),
    ("httpx", {"authentication.fetching"}),
    ("aio_pika", {"mesh.rabbitmq"}),
    ("aiormq", {"mesh.rabbitmq"}),
    ("pamqp", {"mesh.rabbitmq"}),
    ("yarl", {"mesh.rabbitmq"}),
    ("uvicorn", {"server", "cli", "testing.running"}),
    ("pytest", {"testing.plugin"}),
    ("yaml", {"mocks.yaml_nodes"}),
    ("h11", {"server"}),
    ("websockets", {"server", "client", "cli.record.relay"}),
    ("click", {"cli"}),
    ("rich", {"cli"}),
    ("prometheus_client", {"observability.metrics"}),
    ("opentelemetry", {"tracing.spans"}),
    ("cryptography", {"authentication.keys", "wire.encryption", "wire.services"}),
]


@pytest.mark.parametrize(("library", "places"), KNOWN_TO)
def test_a_library_is_known_in_few_places(library: str, places: set[str]) -> None:
    found = {module for module, names in imports().items() if library in {name.split(".")[0] for name in names}}
    known = {module for module in found for place in places if module == place or module.startswith(f"{place}.")}
    assert found - known == set()


def test_no_other_library_is_needed() -> None:
    libraries = {name.split(".")[0] for names in imports().values() for name in names}
    assert libraries - sys.stdlib_module_names - {PACKAGE} <= {name for name, _ in KNOWN_TO} | {"anyio", "msgspec"}


# --- public names -----------------------------------------------------------------------------------------------

PUBLIC = PATHS["nuropb_gateway_asgi"]


def test_the_public_names_are_these() -> None:
    assert nuropb_gateway_asgi.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name: str) -> None:
    value = getattr(nuropb_gateway_asgi, name)
    assert name == "__version__" or f"{value.__module__}.".startswith(f"{PACKAGE}.")
    assert name == "__version__" or value.__doc__


@pytest.mark.parametrize("module", [module for module in FILES if module not in DOORS])
def test_what_a_module_exports_is_there(module: str) -> None:
    imported = importlib.import_module(f"{PACKAGE}.{module}")
    for name in getattr(imported, "__all__", ()):
        assert hasattr(imported, name)
    assert imported.__doc__ or module == "_version"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Gateway", ["app", "lifespan", "mount", "handler_manager", "service_mesh_manager"]),
        ("Settings", ["from_env"]),
        ("JWTAuthenticator", ["__call__"]),
        ("FunctionAuthenticator", ["__call__"]),
    ],
)
def test_what_others_build_against_has_its_members(owner: str, names: list[str]) -> None:
    class_ = getattr(nuropb_gateway_asgi, owner)
    source = ast.parse(FILES[class_.__module__.removeprefix(f"{PACKAGE}.")].read_text(encoding="utf-8"))
    assigned = {
        node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert [name for name in names if not hasattr(class_, name) and name not in assigned] == []


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nuropb_gateway_asgi' has no attribute 'nothing'"):
        nuropb_gateway_asgi.nothing  # noqa: B018


def test_the_app_is_made_when_it_is_first_asked_for_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    monkeypatch.delitem(vars(nuropb_gateway_asgi), "_app", raising=False)
    monkeypatch.setattr(nuropb_gateway_asgi, "create_app", make)
    try:
        assert made == []
        assert nuropb_gateway_asgi.app is made[0]
        assert nuropb_gateway_asgi.app is made[0]
        assert len(made) == 1
    finally:
        vars(nuropb_gateway_asgi).pop("_app", None)


def test_importing_the_client_imports_nothing_of_a_server() -> None:
    program = (
        "import sys\n"
        f"import {PACKAGE}.client\n"
        "server = {'starlette', 'uvicorn', 'aio_pika', 'aiormq', 'jose', 'cryptography', 'prometheus_client'}\n"
        "assert not server & {name.split('.')[0] for name in sys.modules}, server & set(sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_gateway_with_an_embedded_mesh_imports_no_library_of_a_broker() -> None:
    program = (
        "import sys\n"
        f"from {PACKAGE} import Gateway, Settings\n"
        "Gateway(Settings(mesh_url='embedded://demo'))\n"
        "assert not {'aio_pika', 'aiormq', 'pamqp'} & sys.modules.keys()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_importing_the_package_makes_no_app_and_needs_no_settings_and_no_nuropb() -> None:
    program = (
        "import sys; sys.modules['nuropb'] = None\n"
        f"import {PACKAGE}\n"
        f"assert '_app' not in vars({PACKAGE})\n"
        "assert 'uvicorn' not in sys.modules\n"
        f"from {PACKAGE} import *\n"
        f"assert '_app' not in vars({PACKAGE})\n"
    )
    environment = {"NUROPB_GATEWAY_PATH": "nonsense", "PYTHONPATH": str(ROOT.parent), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def _needed_to_collect(path: Path) -> set[str]:
    """The absolute names that a file of the tests imports outside of its functions."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_for_types_only(node):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT.parent).parts[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (package, node.module)))
            found.update((base, *(f"{base}.{alias.name}" for alias in node.names)))
    return found


def test_the_unit_tests_need_the_packages_of_their_group_only() -> None:
    groups = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    others = {re.split(r"[\[>=]", each)[0].replace("-", "_") for each in groups["dev"] if isinstance(each, str)}
    assert "hypercorn" in others
    seen: set[Path] = set()
    waiting = {*(ROOT.parent / "tests" / "unit").glob("*.py"), ROOT.parent / "tests" / "conftest.py"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        names = _needed_to_collect(path)
        assert {name.split(".")[0] for name in names} & others == set(), path
        files = {
            (ROOT.parent / name.replace(".", "/")).with_suffix(".py") for name in names if name.startswith("tests.")
        }
        waiting |= {file for file in files if file.exists()} - seen
    assert ROOT.parent / "tests" / "kit" / "gateways.py" in seen
