"""A packed index: millions of pictures in about 500 bytes each, read-only and memory-mapped. See docs/gallery.md."""
