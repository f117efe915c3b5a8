"""The things people do with a checkout, each in a fresh environment: `nox -s tests|lint|demo|docs|coverage`."""

import nox

nox.options.sessions = ["tests", "lint"]


def _install(session: nox.Session, extra: str) -> None:
    session.install("-c", "constraints.txt", "-e", f".[{extra}]")


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the tests; arguments after `--` go to pytest."""
    _install(session, "test")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Runs ruff and mypy, as CI does."""
    _install(session, "test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def demo(session: nox.Session) -> None:
    """Gates three real models on an embedded registry."""
    _install(session, "demo")
    session.run("privacy-gate", "demo")


@nox.session
def docs(session: nox.Session) -> None:
    """Checks README and docs against the code, and counts their English."""
    _install(session, "test")
    session.run("pytest", "-q", "tests/test_readme.py", "tests/test_docs.py")
    session.run("python", "docs/prose.py", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Runs the tests under coverage; writes coverage.xml and coverage.md."""
    _install(session, "test")
    session.run("pytest", "-n", "2", "--cov", "--cov-report=xml", "--cov-report=markdown:coverage.md", *session.posargs)
