"""The guide is true: its jobs validate, its commands are accepted, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from rectrain.api import parse_job
from rectrain.cli.main import cli

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/job-file.md").read_text()
JOBS = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^\$ (rectrain validate job\.yaml .*)$", GUIDE, re.MULTILINE)
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


@pytest.mark.parametrize("job", JOBS)
def test_job_of_the_guide_is_valid(job: str) -> None:
    parse_job(job, source="docs/job-file.md")


@pytest.mark.parametrize("command", COMMANDS)
def test_override_of_the_guide_does_what_it_says(command: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(next(job for job in JOBS if "ads-dlrm" in job))
    arguments = [str(file) if word == "job.yaml" else word for word in shlex.split(command)[1:]]
    result = CliRunner().invoke(cli, arguments)
    printed = GUIDE.partition(f"$ {command}\n")[2].splitlines()[0]
    if printed.startswith("error: "):
        assert (result.exit_code, result.stderr) == (2, printed.replace("job.yaml", str(file)) + "\n")
    else:
        assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", page.read_text())
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
