"""`blip2rt serve`: a model behind HTTP, with the APIs of OpenAI and Ollama, our own routes, metrics and a web page.

Needs the extra `serve`. Importing `cli` and `settings` needs no HTTP package, so `--help` works without it.
"""
