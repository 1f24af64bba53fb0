"""What the page shows, and how Streamlit draws it.

`search`, `choose`, `corpus` and `evaluate` are its tabs, `visit` is what one visitor wants to see.
The other files know nothing of Streamlit.
"""
