"""What makes set-up do its work again."""

from scripts.setup_env.environment import packaging_part

PYPROJECT = """\
[project]
name = "polyloop"

[tool.hatch.build]
dev-mode-dirs = ["src"]

[tool.ruff]
line-length = 120

[[tool.mypy.overrides]]
module = "x"
"""


def test_settings_of_linters_do_not_touch_the_environment() -> None:
    """Only what is installed counts: the project's metadata and how it is built."""
    kept = packaging_part(PYPROJECT)
    assert 'name = "polyloop"' in kept and "dev-mode-dirs" in kept
    assert "line-length" not in kept and "module" not in kept
