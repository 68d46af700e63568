"""Fixtures of the training's tests."""

from collections.abc import Callable, Sequence

import pytest

Command = Callable[[list[str]], int]


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[[Command, Sequence[object]], str]:
    """A function that runs a command with arguments, expects exit status 2, and returns its one line of error."""

    def run(main: Command, arguments: Sequence[object]) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2, arguments
        output = capsys.readouterr().err
        [error] = [line for line in output.splitlines() if "error: " in line]  # beside progress bars
        assert "Traceback" not in output
        return error

    return run
