"""How Sphinx builds the site; ``python docs/site`` calls it."""

import sys
from pathlib import Path

from lamella import __version__

sys.path.insert(0, str(Path(__file__).parent))

project, author = "lamella", "the authors of lamella"
release = version = __version__
html_title = "lamella"
extensions = ["myst_parser", "sphinx_copybutton", "links"]
nitpicky = True

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_static_path = ["static"]
html_css_files, html_js_files = ["lamella.css"], ["search.js"]
html_favicon = "static/plates.svg"
html_copy_source = html_use_index = False
html_show_copyright = False
html_theme_options = {
    "light_logo": "plates.svg",
    "dark_logo": "plates.svg",
    "top_of_page_buttons": [],
    "light_css_variables": {
        "color-brand-primary": "#0b6e6e",
        "color-brand-content": "#0b6e6e",
        "color-brand-visited": "#0b6e6e",
        "color-highlight-on-target": "#e0f2f0",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5cc9bf",
        "color-brand-content": "#5cc9bf",
        "color-brand-visited": "#5cc9bf",
        "color-highlight-on-target": "#12332f",
    },
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
