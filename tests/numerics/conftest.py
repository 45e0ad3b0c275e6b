"""The interpreter of Triton kernels, which these tests run on a CPU, at half its cost."""

import os
from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session", autouse=True)
def patch_triton_once():
    """Keep the interpreter from patching `triton.language` again inside a kernel.

    It does so for each device function that a kernel calls, although the kernel's own patch holds
    for the whole launch: that was half the time of these tests.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    patch, active = interpreter._patch_lang, []

    def patch_once(function):
        """The patch of a launch; nothing where one for the same names is active."""
        names = id(function.__globals__)
        if names in active:
            return None
        scope = patch(function)
        active.append(names)
        restore = scope.restore

        def end():
            active.remove(names)
            restore()

        scope.restore = end
        return scope

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang", patch_once)
        yield
