"""What the page shows, as functions of what `retrieval` returns, and how Streamlit draws it.

Files ending in `_view` draw, `session` holds what one visitor wants to see; all others know nothing
of Streamlit.
"""
