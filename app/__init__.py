"""Faces: the `matvit` command and the Streamlit page."""

import sys


def main() -> None:
    """Run the command; an interrupt ends it even while it is being imported."""
    try:
        from app.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
