"""A page without an index: how to make one."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import streamlit as st

from app.demo import INDEX, run_demo
from app.page.plain import plain
from indexing import read_manifest
from matvit import DEFAULT_ENCODER, MatViT

_ONE_AT_A_TIME = Lock()


def draw_welcome(demo: Path) -> None:
    """Say how to make an index, and offer to make the demo's.

    Args:
        demo: Folder of the demo.
    """
    st.info("There is no index yet.")
    st.markdown("Make one from your own photos, then open it:")
    st.code("matvit index build photos/ --out photos.index\nmatvit app photos.index", "bash")
    st.markdown("Or begin with 1,797 handwritten digits that come with scikit-learn:")
    if st.button("Build the demo", type="primary"):
        try:
            with st.spinner("Indexing and measuring; this takes about a minute …", show_time=True):
                _build(demo)
        except (ValueError, OSError) as error:
            st.error(plain(error))
            return
        st.rerun()


def is_built(index: Path) -> bool:
    """Whether there is an index, be it a damaged one; a build that was stopped left none."""
    try:
        return read_manifest(index).plan is None
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def _build(demo: Path) -> None:
    """Make the demo, unless another visitor has made it meanwhile: it would be replaced."""
    with _ONE_AT_A_TIME:
        if not is_built(demo / INDEX):
            run_demo(MatViT.load(DEFAULT_ENCODER), demo, None, progress=False)
