"""A page without an index: how to make one."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.demo import run_demo
from app.page.plain import plain
from matvit import checkpoint
from matvit.model import MatViT


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
                run_demo(MatViT.load(checkpoint.DEFAULT), demo, None, progress=False)
        except (ValueError, OSError) as error:
            st.error(plain(error))
            return
        st.rerun()
