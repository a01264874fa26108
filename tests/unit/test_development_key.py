"""The key for development that is kept in a file."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.authentication.development_key import kept_secret
from nuropb_gateway_asgi.cli import main
from nuropb_gateway_asgi.cli._development import KEY_FILE, with_kept_key
from nuropb_gateway_asgi.cli.serve.announcement import announce
from nuropb_gateway_asgi.exceptions import SettingsError


async def user_of(gateway: Gateway, token: str) -> str | None:
    identity = await gateway.handler_manager.authenticator(token)
    return None if identity is None else identity.user_id


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_a_token_outlives_a_restart(tmp_path: Path) -> None:
    settings = Settings(development_key_file=str(tmp_path / "folder" / "key"))
    token = Gateway(settings).development_token
    assert token is not None
    assert await user_of(Gateway(settings), token) == "dev"


def test_the_file_is_for_its_owner_alone_and_ignored_by_git(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "key"
    secret = kept_secret(file)
    assert file.read_text().strip() == secret
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_was_there_gets_no_other_file(tmp_path: Path) -> None:
    kept_secret(tmp_path / "key")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_processes_that_start_together_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(kept_secret, [tmp_path / "folder" / "key"] * 16))) == 1


def shared(file: Path) -> None:
    kept_secret(file)
    file.chmod(0o640)


def linked(file: Path) -> None:
    kept_secret(file.with_name("other"))
    file.symlink_to("other")


def short(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT, 0o600))
    file.write_text("too short")


@pytest.mark.parametrize("spoil", [shared, linked, short, Path.mkdir, os.mkfifo])
def test_a_file_that_another_user_or_no_gateway_made_is_refused(spoil: object, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(tmp_path / "key")
    with pytest.raises(SettingsError, match="mode 600"):
        kept_secret(tmp_path / "key")


def test_a_folder_that_cannot_be_made_costs_the_key_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KEY_FILE.parent.write_text("")
    settings = Settings()
    assert with_kept_key(settings, make=True) is settings
    assert "is not kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        Settings(jwt_key="k" * 32),
        Settings(mesh_url="amqp://broker/", jwt_oidc_issuer="https://id.example"),
        Settings(jwt_jwks_url="https://id.example/keys"),
    ],
)
def test_no_key_is_made_beside_that_of_the_settings(settings: Settings, folder: Path) -> None:
    assert with_kept_key(settings, make=True) is settings
    assert not KEY_FILE.exists()


async def test_the_command_token_signs_with_the_kept_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = Gateway(with_kept_key(Settings(), make=True))
    assert main(["token", "--user", "alice"]) == 0
    assert await user_of(gateway, capsys.readouterr().out.strip()) == "alice"


def test_the_command_token_says_how_a_key_comes_about(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--user", "alice"]) == 2
    assert "nuropb-gateway serve" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "is_told"), [("k" * 32, True), ("-----BEGIN PUBLIC KEY-----", False), ("", False)])
def test_a_gateway_with_a_secret_of_its_own_says_how_to_make_a_token(
    key: str, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("ws://127.0.0.1:8000/ws", Settings(jwt_key=key), None)
    assert ("Make a token: " in (said := capsys.readouterr().out)) == is_told
    assert "kkkk" not in said
