"""Detection on images of any origin, and pictures of the result."""
