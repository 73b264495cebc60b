"""The allocator's settings: made once, and never against the user's own."""

import platform
import subprocess
import sys

import pytest

CODE = "from jaxllada.common.memory import keep_freed_memory; print(keep_freed_memory())"


def answer(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
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
