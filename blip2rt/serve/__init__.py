"""`blip2rt serve`: a model behind HTTP. The queue, the routes of OpenAI and Ollama and our own, metrics, the page.

Needs the extra `serve`. Only `settings` and `flags` are imported by who does not serve.
"""
