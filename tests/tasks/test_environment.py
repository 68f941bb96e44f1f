from __future__ import annotations

import os
import pwd
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest
import requests

from tasks.environment import LOOPBACK, missing

UNNAMED = 4_123_456_789
PROXY = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}


def listed(value: str) -> list[str]:
    return value.split(",")


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("given", "first"),
    [("corp.example", ["corp.example"]), (" a , b,, ", ["a", "b"]), ("127.0.0.1,b", ["127.0.0.1", "b"])],
)
def test_hosts_that_are_listed_stay_and_ours_are_added_once(name: str, given: str, first: list[str]) -> None:
    found = missing({name: given})
    # the other spelling would hide this one from some libraries
    assert set(found) & {"no_proxy", "NO_PROXY"} == {name}
    hosts = listed(found[name])
    assert hosts[: len(first)] == first and set(LOOPBACK) < set(hosts) and len(hosts) == len(set(hosts))
    assert missing(found)[name] == found[name]


def test_without_any_list_both_spellings_name_this_host() -> None:
    found = missing({"no_proxy": "", "VETGATE_HOST": "192.0.2.7"})
    assert found["no_proxy"] == found["NO_PROXY"] and set(LOOPBACK) | {"192.0.2.7"} <= set(listed(found["no_proxy"]))


def test_all_stays_all() -> None:
    assert missing({"NO_PROXY": "*"})["NO_PROXY"] == "*"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_every_client_library_goes_by_it(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in PROXY.items():
        monkeypatch.setenv(name, value)
    url = f"http://{host}:4200/api"
    assert urllib.request.proxy_bypass(f"{host}:4200") == 0 and requests.utils.get_environ_proxies(url)
    for name, value in missing(os.environ).items():
        monkeypatch.setenv(name, value)
    assert requests.utils.get_environ_proxies(url) == {} and requests.utils.get_environ_proxies("http://example.org")
    if host != "[::1]":
        # urllib has no notion of such an address, and nothing of ours asks it for one
        assert urllib.request.proxy_bypass(f"{host}:4200")
    with httpx.Client() as client:
        direct = client._transport_for_url(httpx.URL(url))
        assert direct is client._transport
        assert client._transport_for_url(httpx.URL("http://example.org")) is not direct


class TestUser:
    def test_one_that_the_system_knows_needs_nothing(self) -> None:
        assert not {"USER", "HOME"} & set(missing({}))

    @pytest.mark.parametrize("name", ["LOGNAME", "USER", "LNAME", "USERNAME"])
    def test_a_number_has_the_name_that_it_is_given(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "getuid", lambda: UNNAMED)
        assert "USER" not in missing({name: "ci"})

    def test_or_else_one_of_its_own_and_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "getuid", lambda: UNNAMED)
        with pytest.raises(KeyError):
            pwd.getpwuid(os.getuid())
        assert missing({}).items() >= {"USER": f"uid-{UNNAMED}", "HOME": "/"}.items()
        assert "HOME" not in missing({"HOME": "/home/ci"})


@pytest.mark.parametrize(
    ("variables", "encoding"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}, "latin-1"),
        ({"LC_ALL": "C"}, "utf-8"),
        ({"LANG": "C.UTF-8"}, "utf-8"),
    ],
)
def test_files_are_utf_8_and_the_terminal_is_what_it_was(
    variables: dict[str, str], encoding: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from pathlib import Path; from tasks.environment import speak_utf8\n"
        "speak_utf8()\n"
        "Path(sys.argv[1], 'grün').write_text('日本')\n"
        "print(len(sys.argv), sys.argv[2], 'ü')\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "a b"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        capture_output=True,
    )
    assert (tmp_path / "grün").read_text(encoding="utf-8") == "日本", done.stderr
    assert done.stdout == "3 a b ü\n".encode(encoding, errors="backslashreplace")
