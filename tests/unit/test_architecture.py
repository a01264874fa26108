from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nuropb_gateway_asgi
import nuropb_gateway_asgi.gateway

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


def _imports(module: str, *, for_types: bool) -> set[str]:
    """The absolute names of all modules that ``module`` imports, within functions too."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(FILES[module].read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if for_types or not _is_for_types_only(node):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node.level, node.module)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name.removeprefix(f"{PACKAGE}.") in FILES else base)
    return found


IMPORTS = {module: _imports(module, for_types=True) for module in FILES}
#: By name within the package, and without what is never run: who is called back may know the type of its caller.
INTERNAL = {
    module: {
        name.removeprefix(PACKAGE).removeprefix(".")
        for name in _imports(module, for_types=False)
        if name.split(".")[0] == PACKAGE
    }
    for module in FILES
}


def _drawn() -> dict[str, int]:
    """The row of every module in the drawing that opens gateway.py, counted from above."""
    assert nuropb_gateway_asgi.gateway.__doc__ is not None
    _, _, drawing = nuropb_gateway_asgi.gateway.__doc__.partition("::\n")
    rows = [re.findall(r"[a-z_]+(?:\.[a-z_]+)*", line) for line in drawing.splitlines() if line.strip()]
    return {word: row for row, words in enumerate(rows) for word in words if word in FILES}


DRAWN = _drawn()


def _row(module: str) -> int:
    """Modules within a package that is drawn are where the package is."""
    while module not in DRAWN:
        assert "." in module, f"{module} is not drawn in the docstring of gateway.py"
        module = module.rpartition(".")[0]
    return DRAWN[module]


@pytest.mark.parametrize(
    "module", [module for module in FILES if module not in (*DOORS, "_version", "mesh", "handlers")]
)
def test_imports_only_point_down(module: str) -> None:
    for imported in INTERNAL[module] - {"_version"}:
        assert imported not in DOORS
        assert _row(imported) >= _row(module), f"{module} imports {imported}, which is drawn above it"


def test_the_drawing_has_all_modules_between_the_gateway_and_what_everything_needs() -> None:
    assert (DRAWN["cli"], DRAWN["gateway"]) == (0, 1)
    assert {"exceptions", "settings"} <= {name for name, row in DRAWN.items() if row == max(DRAWN.values())}
    packages = {module for module, path in FILES.items() if path.name == "__init__.py"}
    modules = set(FILES) - packages - {*DOORS, "_version"}
    assert not {module for module in modules if module not in DRAWN and module.rpartition(".")[0] not in DRAWN}


def test_no_module_imports_itself_by_a_detour() -> None:
    graphlib.TopologicalSorter(INTERNAL).prepare()


@pytest.mark.parametrize("module", ["mesh", "handlers", "_version"])
def test_what_only_holds_others_imports_nothing(module: str) -> None:
    imported = IMPORTS[module] - {"__future__", "typing"}
    # `mesh` has what users need for a service, which is imported when they are asked for.
    assert imported <= ({f"{PACKAGE}.mesh", f"{PACKAGE}.mesh.serving"} if module == "mesh" else set())
    assert not {name for name in INTERNAL[module] if name not in ("mesh", "mesh.serving")}


def test_a_private_module_is_only_imported_within_its_package() -> None:
    for module, imported in INTERNAL.items():
        for name in imported:
            package, _, last = name.rpartition(".")
            if last.startswith("_"):
                assert not package or module == package or module.startswith(f"{package}.")


KNOWN_TO = [
    # distribution's module, where it may be imported
    ("nuropb", set()),
    # The package: for the type of its app.
    (
        "starlette",
        {"", "_assets", "_contracts", "_cross_origin", "authentication", "cli", "console", "credentials", "gateway"}
        | {"handlers"},
    ),
    ("jose", {"keys"}),
    ("httpx", {"_documents"}),
    ("aio_pika", {"mesh.rabbitmq"}),
    ("aiormq", {"mesh.rabbitmq"}),
    ("pamqp", {"mesh.rabbitmq"}),
    ("yarl", {"mesh.rabbitmq"}),
    ("uvicorn", {"server", "cli"}),
    ("h11", {"server"}),
    ("websockets", {"server", "_text_frames", "client"}),
    ("click", {"cli"}),
    ("rich", {"cli"}),
    ("prometheus_client", {"metrics"}),
    ("cryptography", {"keys", "mesh.encryption", "mesh.service"}),
]


@pytest.mark.parametrize(("library", "places"), KNOWN_TO)
def test_a_library_is_known_in_few_places(library: str, places: set[str]) -> None:
    found = {module for module, names in IMPORTS.items() if library in {name.split(".")[0] for name in names}}
    assert {module for module in found - places if module.rpartition(".")[0] not in places - {""}} == set()


def test_no_other_library_is_needed() -> None:
    libraries = {name.split(".")[0] for names in IMPORTS.values() for name in names}
    assert libraries - sys.stdlib_module_names - {PACKAGE} <= {name for name, _ in KNOWN_TO} | {"anyio", "msgspec"}


# --- public names -----------------------------------------------------------------------------------------------

PUBLIC = [
    "AuthenticationUnavailable",
    "Authenticator",
    "CallError",
    "CallHandler",
    "CloseCode",
    "ErrorCode",
    "EventStreamHandler",
    "FunctionAuthenticator",
    "Gateway",
    "GatewayError",
    "Handler",
    "HandlerManager",
    "Identity",
    "JWTAuthenticator",
    "KeySet",
    "ServiceMeshManager",
    "ServiceMeshManagerController",
    "Settings",
    "SettingsError",
    "TCPHandler",
    "TokenAuthenticationBackend",
    "WebSocketHandler",
    "__version__",
    "combine_lifespans",
    "create_app",
]


def test_the_public_names_are_these() -> None:
    assert nuropb_gateway_asgi.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name: str) -> None:
    value = getattr(nuropb_gateway_asgi, name)
    assert name == "__version__" or value.__module__.startswith(f"{PACKAGE}.")
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

    monkeypatch.delitem(vars(nuropb_gateway_asgi), "app", raising=False)
    monkeypatch.setattr(nuropb_gateway_asgi, "create_app", make)
    try:
        assert made == []
        assert nuropb_gateway_asgi.app is made[0]
        assert nuropb_gateway_asgi.app is made[0]
        assert len(made) == 1
    finally:
        vars(nuropb_gateway_asgi).pop("app", None)


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


def test_importing_the_package_makes_no_app_and_needs_no_settings_and_no_nuropb() -> None:
    program = (
        "import sys; sys.modules['nuropb'] = None\n"
        f"import {PACKAGE}\n"
        f"assert 'app' not in vars({PACKAGE})\n"
        "assert 'uvicorn' not in sys.modules\n"
        f"from {PACKAGE} import *\n"
        f"assert 'app' not in vars({PACKAGE})\n"
    )
    environment = {"NUROPB_GATEWAY_PATH": "nonsense", "PYTHONPATH": str(ROOT.parent), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
