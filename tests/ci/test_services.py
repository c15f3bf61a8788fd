"""The tests' services are installed where that needs no questions, and otherwise one line says what to do."""

import shutil
import subprocess
from pathlib import Path

import pytest

from source_tree import ROOT

APT_LOG = 'echo "apt-get $*" >> "$LOG"'
MAKE_PROMETHEUS = 'touch "$BIN/prometheus" "$BIN/promtool" && chmod +x "$BIN"/prom*'
MAKE_CHROMIUM = 'touch "$BIN/chromium" "$BIN/chromedriver" && chmod +x "$BIN"/chrom*'
MAKE_INITDB = 'mkdir -p "$POSTGRES_HOME/15/bin" && touch "$POSTGRES_HOME/15/bin/initdb"'

PROMETHEUS = {"prometheus": "", "promtool": ""}
CHROMIUM = {"chromium": "", "chromedriver": ""}


@pytest.fixture
def services(tmp_path: Path):
    """Return a runner of the script on a machine that has only the given programs, and what apt-get was told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "cat", "chmod", "mkdir", "mktemp", "rm", "tail", "touch"):
        programs.joinpath(name).symlink_to(shutil.which(name))

    def run(**scripts: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        for name, script in scripts.items():
            path = programs / name.replace("_", "-" if name == "apt_get" else "_")
            path.write_text(f"#!{programs}/bash\n{script}\n")
            path.chmod(0o755)
        log = tmp_path / "log"
        environment = {
            "PATH": str(programs),
            "POSTGRES_HOME": str(tmp_path / "postgresql"),
            "LOG": str(log),
            "BIN": str(programs),
            "TMPDIR": str(tmp_path),
        }
        result = subprocess.run(
            [shutil.which("bash"), ROOT / ".ci/services.sh"],
            env=environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        return result, log.read_text().splitlines() if log.exists() else []

    return run


def test_nothing_is_done_when_it_is_there(services, tmp_path):
    (tmp_path / "postgresql/15/bin").mkdir(parents=True)
    (tmp_path / "postgresql/15/bin/initdb").touch()

    result, told = services(id="echo 0", apt_get=APT_LOG, **PROMETHEUS, **CHROMIUM)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert told == []


def test_missing_servers_are_installed_by_root(services):
    result, told = services(
        id="echo 0", apt_get=f"{APT_LOG}; {MAKE_INITDB}; {MAKE_PROMETHEUS}; {MAKE_CHROMIUM}"
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout == "services: installing postgresql prometheus chromium chromium-driver\n"
    assert told == [
        "apt-get update",
        "apt-get install --yes --no-install-recommends postgresql prometheus chromium chromium-driver",
    ]


def test_only_what_is_missing_is_installed(services):
    result, told = services(
        id="echo 0", apt_get=f"{APT_LOG}; {MAKE_INITDB}", **PROMETHEUS, **CHROMIUM
    )

    assert result.returncode == 0, result.stderr
    assert told[1:] == ["apt-get install --yes --no-install-recommends postgresql"]


def test_server_that_the_package_started_is_stopped(services, tmp_path):
    (tmp_path / "postgresql/15/bin").mkdir(parents=True)
    (tmp_path / "postgresql/15/bin/initdb").touch()

    _, told = services(
        id="echo 0",
        apt_get=f"{APT_LOG}; {MAKE_PROMETHEUS}",
        **CHROMIUM,
        systemctl='echo "systemctl $*" >> "$LOG"',
    )

    assert told[2:] == ["systemctl --quiet is-active prometheus", "systemctl stop prometheus"]


def test_cluster_that_the_package_started_is_stopped(services):
    clusters = "echo '15 main 5432 online postgres /data /log'; echo '14 old 5433 down x y z'"

    _, told = services(
        id="echo 0",
        apt_get=f"{APT_LOG}; {MAKE_INITDB}",
        **PROMETHEUS,
        **CHROMIUM,
        pg_lsclusters=clusters,
        pg_ctlcluster='echo "pg_ctlcluster $*" >> "$LOG"',
    )

    assert told[2:] == ["pg_ctlcluster 15 main stop --mode fast"]


def test_others_are_told_what_to_install(services):
    result, told = services(id="echo 1000", apt_get=APT_LOG)

    assert result.returncode == 1
    assert result.stderr == (
        "services: the tests need programs; run: sudo apt-get install "
        "postgresql prometheus chromium chromium-driver\n"
    )
    assert told == []


def test_machine_without_apt_is_told_what_is_missing(services):
    result, _ = services(id="echo 0")

    assert result.returncode == 1
    assert "initdb" in result.stderr


def test_failed_installation_shows_its_end(services):
    result, _ = services(id="echo 0", apt_get="echo 'E: no such package'; exit 100")

    assert result.returncode == 1
    assert "E: no such package" in result.stderr
    assert "apt-get install postgresql prometheus chromium chromium-driver failed" in result.stderr
