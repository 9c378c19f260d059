"""Pictures of a study: what is drawn, and how, for a page, a PNG or an SVG."""
