"""Detection on images from any source, and drawing of the results."""
