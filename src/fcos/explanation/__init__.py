"""Explanation of FCOS's detections on one image: `explain` computes it, `page.write_page` writes it as a page."""
