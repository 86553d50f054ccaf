"""What the tests' server needs from the system is found, or said once."""

import os
import pwd
import shutil

import pytest

from tests.support.server_requirements import require_server_user


def test_root_finds_the_programs_of_the_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: None)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    require_server_user()
    assert "/usr/sbin" in os.environ["PATH"].split(os.pathsep)


def test_without_useradd_the_error_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def know_nobody(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", know_nobody)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setenv("PATH", "/usr/bin")
    with pytest.raises(pytest.UsageError, match=r"no useradd .* install it .* or run the tests as another user"):
        require_server_user()


def test_other_users_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/usr/bin")
    require_server_user()
    assert os.environ["PATH"] == "/usr/bin"
