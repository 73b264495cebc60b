"""The allocator's settings: made once, and never against the user's own."""

import ast
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from jaxllada.common.memory import keep_freed_memory; print(keep_freed_memory())"
CHILD = "from jaxllada.common.memory import allocator_environment; print(allocator_environment())"


def answer(code=CODE, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_glibc_takes_every_setting():
    assert answer() == "True"


@pytest.mark.parametrize(
    "own",
    [
        {"JAXLLADA_MALLOC": "system"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
        {"MALLOC_ARENA_MAX": "2"},
    ],
)
def test_settings_of_the_user_are_left_alone(own):
    assert answer(**own) == "False"
    assert answer(CHILD, **own) == "{}"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_a_program_beside_ours_is_given_tunables_that_glibc_knows():
    settings = ast.literal_eval(answer(CHILD))
    loader = next(Path("/").glob("lib*/**/ld-linux-*.so.*"), None)
    if loader is None:
        pytest.skip("the dynamic loader, which lists the tunables, is not where it usually is")
    listed = subprocess.run(
        [loader, "--list-tunables"], env=settings, capture_output=True, text=True, check=True
    ).stdout
    tunables = dict(line.split(": ", 1) for line in listed.splitlines() if ": " in line)
    for setting in settings["GLIBC_TUNABLES"].split(":"):
        name, value = setting.split("=")
        assert int(tunables[name].split()[0], 16) == int(value), listed
