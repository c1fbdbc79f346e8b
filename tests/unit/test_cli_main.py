"""The `rectrain` command: what it lists and imports, how it fails, and what it leaves as exit code."""

import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import click
import pytest
from click.testing import CliRunner, Result

from rectrain.api.errors import UserError
from rectrain.cli import lazy, main

WORKER_COMMANDS = ("run", "data", "plan", "evaluate", "index", "serve")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main.cli, args)


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Makes `rectrain run` call a function, as an entry point of the worker packages would."""

    def add(function: Callable[[], None]) -> None:
        entry = metadata.EntryPoint("run", "somewhere:run", lazy.ENTRY_POINT_GROUP)
        monkeypatch.setattr(metadata.EntryPoint, "load", lambda _: click.command("run")(function))
        monkeypatch.setattr(main, "entry_point_commands", lambda: {"run": entry})

    return add


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_help_lists_own_and_worker_commands_with_a_summary() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    listed = [line.split(maxsplit=1) for line in result.output.partition("Commands:\n")[2].splitlines()]
    summaries = {words[0]: words[1] for words in listed if len(words) == 2}
    assert {"validate", "explain", "schema", *WORKER_COMMANDS} <= set(summaries)


def test_every_worker_command_has_a_summary() -> None:
    ours = [entry for entry in lazy.entry_point_commands().values() if entry.module.startswith("rectrain_jobs.")]
    assert {entry.name for entry in ours} >= set(WORKER_COMMANDS)
    assert all(not (lazy.command_of(entry).short_help or "Added").startswith("Added") for entry in ours)


def test_command_of_another_package_names_the_package() -> None:
    entry = metadata.EntryPoint("extra", "other_package.cli:extra", lazy.ENTRY_POINT_GROUP)
    assert lazy.command_of(entry).short_help == "Added by other_package.cli."


def test_command_is_not_loaded_to_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda _: raising(AssertionError("was loaded"))())
    result = invoke("--help")
    assert result.exception is None
    assert "Train a job on this machine" in result.output


def test_version() -> None:
    assert invoke("--version").output == f"rectrain {metadata.version('rectrain')}\n"


def test_unknown_command() -> None:
    result = invoke("trian")
    assert result.exit_code == 2
    assert "No such command 'trian'" in result.stderr


def test_command_runs(add_command: Callable[[Callable[[], None]], None]) -> None:
    add_command(lambda: click.echo("ran"))
    result = invoke("run")
    assert (result.exit_code, result.output) == (0, "ran\n")


@pytest.mark.parametrize(
    ("error", "exit_code", "stderr"),
    [
        (UserError("a.yaml: x must be 1"), 2, "error: a.yaml: x must be 1\n"),
        (UserError("a: 1\nb: 2"), 2, "error: a: 1\nerror: b: 2\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "error: rectrain run needs the worker packages: pip install 'rectrain[cpu]' (no module named torch)\n",
        ),
        (
            ModuleNotFoundError("No module named 'rectrain_jobs.gone'", name="rectrain_jobs.gone"),
            1,
            "error: unexpected ModuleNotFoundError: No module named 'rectrain_jobs.gone'. "
            "Please report it with the traceback that `rectrain --debug ...` shows\n",
        ),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "error: unexpected ZeroDivisionError: division by zero. "
            "Please report it with the traceback that `rectrain --debug ...` shows\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),
        (click.exceptions.Exit(7), 7, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_is_a_line_and_an_exit_code(
    add_command: Callable[[Callable[[], None]], None], error: BaseException, exit_code: int, stderr: str
) -> None:
    add_command(raising(error))
    result = invoke("run")
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", stderr)


@pytest.mark.parametrize(("args", "env"), [(["--debug"], {}), ([], {"RECTRAIN_DEBUG": "1"})])
def test_debug_shows_the_traceback(
    add_command: Callable[[Callable[[], None]], None], args: list[str], env: dict[str, str]
) -> None:
    add_command(raising(ZeroDivisionError("by zero")))
    result = CliRunner().invoke(main.cli, [*args, "run"], env=env)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.endswith("\nerror: unexpected ZeroDivisionError: by zero\n")


def test_reader_of_a_pipe_that_goes_away_is_no_error(add_command: Callable[[Callable[[], None]], None]) -> None:
    add_command(raising(BrokenPipeError(32, "Broken pipe")))
    assert invoke("run").stderr == ""


def test_main_takes_arguments_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["validate", "/nowhere/job.yaml"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: /nowhere/job.yaml: cannot be read: No such file or directory\n"


def test_shell_completion_works_where_the_worker_packages_are_missing(
    add_command: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_command(lambda: None)
    monkeypatch.setattr(
        metadata.EntryPoint, "load", lambda _: raising(ModuleNotFoundError("No module named 'torch'", name="torch"))()
    )
    results = []
    for line, position in (("rectrain va", 1), ("rectrain run --", 2)):
        env = {"_RECTRAIN_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(position)}
        results.append(CliRunner().invoke(main.cli, [], env=env))
    assert [result.output for result in results] == ["plain,validate\n", "plain,--help\n"]


@pytest.mark.parametrize("args", [["--help"], ["validate", "examples/amazon-cds/job.yaml"]], ids=lambda args: args[0])
def test_start_is_quick_and_without_torch(args: list[str], pytestconfig: pytest.Config) -> None:
    heavy = ("torch", "numpy", "mlflow", "rectrain_jobs")
    program = f"""
import sys
from rectrain.cli.main import main
try:
    main({args!r})
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {heavy!r} if name in sys.modules])
print("pydantic" in sys.modules)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-2:] == ["[]", str(args[0] == "validate")]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2, "processor seconds"
