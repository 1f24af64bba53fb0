"""Faces: the `matvit` command and the Streamlit page."""
