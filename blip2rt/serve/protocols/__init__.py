"""The server's APIs: OpenAI's chat and responses, Ollama's, and our own routes. Each module lists its ENDPOINTS."""
