"""Checks of untrusted files before a library reads them: images, tokenizers and graphs."""
